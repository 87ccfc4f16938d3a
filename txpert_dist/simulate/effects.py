"""What every perturbation does to every gene: the truth of a simulated screen.

Enters: a configuration and its hidden network. Leaves: ``Truth``, from which cells are drawn and against
which predictions are judged. Invariant: effects follow from the network by propagation, so genes near each
other in the hidden network have similar effects.

The log fold change of knocking down gene i in a cell line is

    shared response + programme response (B m_i) + regulatory cascade ((I - a W)^-1 column i) + own knock-down

where W are the signed regulatory weights, m_i = (1 - a) (I - a A)^-1 [response of programme(i) + of i's
neighbourhood] diffuses responses over the neighbourhood matrix A, and B are gene loadings on programmes. A
double adds the two singles and a small interaction.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.simulate.config import Purpose, SimulateConfig, generator
from txpert_dist.simulate.network import Network

CONTROL = "control"
SHARED, PROGRAMME, CASCADE, INTERACTION = 0.12, 0.34, 0.16, 0.08
"""Root mean square log fold change of each part, over genes and perturbations."""
DIFFUSION = 0.6
"""Share of a gene's response that comes from its neighbours; also the damping a of the cascade."""
KNOCK_DOWN = -1.5
"""Log fold change of the targeted gene itself."""
LARGEST = 2.5
"""Log fold changes are clipped to this."""
BASELINE_SPREAD, LINE_SPREAD, BATCH_SPREAD = 1.5, 0.5, 0.12
"""Standard deviations of log expression: over genes, between lines, between batches."""
STEPS = 12
"""Terms of the propagation series: 0.6 ** 12 is 0.2 %."""


class Truth(NamedTuple):
    """Noise-free state of every condition; P counts perturbations including control, L cell lines."""

    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    """Names; [0] is control, the others sorted."""
    targets_P2: NDArray[np.int32]
    """Perturbed genes, -1 where there is none."""
    log_effect_RG: NDArray[np.float32]
    """Log fold change; row = cell line * P + perturbation."""
    log_baseline_LG: NDArray[np.float32]
    """Log expression of unperturbed cells of each line, up to a constant."""
    log_context_CG: NDArray[np.float32]
    """The same with the multiplicative effect of each batch; context = cell line * batches + batch."""

    def expression(self, scale: float) -> NDArray[np.float32]:
        """(R, G) log1p(scale * expected share of counts) of fully perturbed cells in the average batch."""
        per_line = len(self.perturbations)
        out_RG = np.empty_like(self.log_effect_RG)
        for line, log_baseline_G in enumerate(self.log_baseline_LG):
            part = slice(line * per_line, (line + 1) * per_line)
            mean_PG = np.exp(self.log_effect_RG[part] + log_baseline_G)
            out_RG[part] = np.log1p(scale * mean_PG / mean_PG.sum(axis=1, keepdims=True))
        return out_RG


def draw_truth(config: SimulateConfig, network: Network) -> Truth:
    """Draw perturbed genes, their effects in every cell line, and the baselines."""
    width = max(4, len(str(config.genes - 1)))
    genes = tuple(f"GENE{number:0{width}d}" for number in range(config.genes))
    targets_P2 = _targets(config, network)
    names = (CONTROL, *("+".join(genes[gene] for gene in pair if gene >= 0) for pair in targets_P2))
    order = np.array([0, *(1 + np.array(sorted(range(len(targets_P2)), key=lambda p: names[p + 1])))])
    targets_P2 = np.concatenate([np.full((1, 2), -1, np.int32), targets_P2])[order]
    log_baseline_LG, log_context_CG = _baselines(config)
    return Truth(
        genes=genes,
        perturbations=tuple(names[p] for p in order),
        targets_P2=targets_P2,
        log_effect_RG=_log_effects(config, network, targets_P2),
        log_baseline_LG=log_baseline_LG,
        log_context_CG=log_context_CG,
    )


def _targets(config: SimulateConfig, network: Network) -> NDArray[np.int32]:
    """Singles are regulators while there are any (screens target genes expected to do something)."""
    rng = generator(config.seed, Purpose.PERTURBED)
    others = np.setdiff1d(np.arange(config.genes), network.regulators)
    single = np.concatenate([rng.permutation(network.regulators), rng.permutation(others)])
    single = np.sort(single[: config.perturbations])
    num_pairs = len(single) * (len(single) - 1) // 2
    pair = rng.choice(num_pairs, config.doubles, replace=False)
    # Pair k of the lower triangle: row r holds the pairs (r, 0) .. (r, r - 1), so r (r - 1) / 2 <= k.
    row = np.floor((1 + np.sqrt(1 + 8.0 * pair)) / 2).astype(np.int64)
    column = pair - row * (row - 1) // 2
    singles_P2 = np.stack([single, np.full_like(single, -1)], axis=1)
    return np.concatenate([singles_P2, np.stack([single[column], single[row]], axis=1)]).astype(np.int32)


def _log_effects(
    config: SimulateConfig, network: Network, targets_P2: NDArray[np.int32]
) -> NDArray[np.float32]:
    rng = generator(config.seed, Purpose.EFFECT)
    single = np.unique(targets_P2[targets_P2 >= 0])
    position = np.full(config.genes + 1, len(single))  # the last entry serves -1: no gene, no effect
    position[single] = np.arange(len(single))
    loading_KG = _loadings(rng, network, config.programmes)
    strength_P = rng.lognormal(0.0, 0.3, len(single))
    shared_G = SHARED * rng.standard_normal(config.genes)
    cascade_PG = _unit(_cascade(network, single)) * CASCADE
    common_PG = _programme_response(rng, network, single, loading_KG)
    interaction_PG = _unit(rng.standard_normal((len(targets_P2), config.programmes)) @ loading_KG)
    double_P = (targets_P2 >= 0).all(axis=1)
    lines = []
    for _ in range(config.cell_lines):
        own_PG = _programme_response(rng, network, single, loading_KG)
        sharing = config.effect_sharing
        response_PG = np.sqrt(sharing) * common_PG + np.sqrt(1 - sharing) * own_PG
        effect_PG = strength_P[:, None] * (shared_G + PROGRAMME * response_PG + cascade_PG)
        effect_PG[np.arange(len(single)), single] += KNOCK_DOWN
        effect_PG = np.concatenate([effect_PG, np.zeros((1, config.genes))])
        sum_PG = effect_PG[position[targets_P2]].sum(axis=1)
        sum_PG[double_P] += INTERACTION * interaction_PG[double_P]
        lines.append(np.clip(sum_PG, -LARGEST, LARGEST).astype(np.float32))
    return np.concatenate(lines)


def _loadings(rng: np.random.Generator, network: Network, num_programmes: int) -> NDArray[np.float64]:
    """(K, G): a gene answers to its own programme, most of them in one direction, and a little to others."""
    genes = np.arange(network.num_genes)
    loading_KG = 0.15 * rng.standard_normal((num_programmes, network.num_genes))
    sign = np.where(rng.random(network.num_genes) < 0.8, 1.0, -1.0)
    loading_KG[network.programme, genes] += sign * rng.lognormal(0.0, 0.5, network.num_genes)
    return loading_KG


def _programme_response(
    rng: np.random.Generator, network: Network, single: NDArray[np.int32], loading_KG: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(singles, G) programme responses diffused over neighbours, loaded on genes; unit root mean square."""
    num_programmes = len(loading_KG)
    response_KK = rng.standard_normal((num_programmes, num_programmes))
    neighbourhood = network.neighbourhood()
    own_GK = rng.standard_normal((network.num_genes, num_programmes))
    local_GK = _unit(neighbourhood @ (neighbourhood @ own_GK))
    term_GK = response_KK[network.programme] + local_GK
    total_GK = term_GK.copy()
    for _ in range(STEPS):
        term_GK = DIFFUSION * (neighbourhood @ term_GK)
        total_GK += term_GK
    return _unit((1 - DIFFUSION) * total_GK[single] @ loading_KG)


def _cascade(network: Network, single: NDArray[np.int32]) -> NDArray[np.float64]:
    """(singles, G): minus the propagated loss of each gene, its own loss left out."""
    regulation = network.regulation()
    term_GP = np.zeros((network.num_genes, len(single)))
    term_GP[single, np.arange(len(single))] = -1.0
    total_GP = np.zeros_like(term_GP)
    for _ in range(STEPS):
        term_GP = DIFFUSION * (regulation @ term_GP)
        total_GP += term_GP
    return total_GP.T


def _unit(values_RG: NDArray[np.float64]) -> NDArray[np.float64]:
    return values_RG / max(float(np.sqrt(np.mean(values_RG**2))), 1e-12)


def _baselines(config: SimulateConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = generator(config.seed, Purpose.BASELINE)
    log_gene_G = BASELINE_SPREAD * rng.standard_normal(config.genes)
    log_baseline_LG = log_gene_G + LINE_SPREAD * rng.standard_normal((config.cell_lines, config.genes))
    batch_LBG = BATCH_SPREAD * rng.standard_normal((config.cell_lines, config.batches, config.genes))
    log_context_CG = (log_baseline_LG[:, None] + batch_LBG).reshape(-1, config.genes)
    return log_baseline_LG.astype(np.float32), log_context_CG.astype(np.float32)
