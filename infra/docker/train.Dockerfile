# Image of Ray's head and workers, and of every `txpert` verb. Build from the repository's root:
#   docker build -f infra/docker/train.Dockerfile --target cpu  -t txpert-train:0.1.0-cpu  .
#   docker build -f infra/docker/train.Dockerfile --target cuda -t txpert-train:0.1.0-cuda .
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/* \
 && python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY infra/constraints.txt infra/constraints.txt

# torch comes first, so that what the package asks for is met by this build of it
FROM build AS build-cpu
ARG TORCH=2.13.0
RUN pip install "torch==${TORCH}+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY graph_store graph_store
COPY txpert_dist txpert_dist
RUN pip install -c infra/constraints.txt ".[train,s3]"

# PyPI's torch for Linux brings CUDA's libraries as wheels: no CUDA base image is needed, the driver is the host's
FROM build AS build-cuda
ARG TORCH=2.13.0
RUN pip install "torch==${TORCH}"
COPY pyproject.toml README.md LICENSE ./
COPY graph_store graph_store
COPY txpert_dist txpert_dist
RUN pip install -c infra/constraints.txt ".[train,s3]"

# wget: KubeRay's probes call it. A C compiler: Triton and DeepSpeed compile what they launch.
FROM python:${PYTHON} AS runtime
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home --shell /bin/bash txpert
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp/numba RAY_USAGE_STATS_ENABLED=0
COPY jobs /opt/txpert/jobs
WORKDIR /home/txpert

FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
USER 1000:1000
CMD ["txpert", "doctor"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/venv /opt/venv
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
CMD ["txpert", "doctor"]
