# Image of the graph store: builds, keeps and serves snapshots; no torch. Build from the repository's root:
#   docker build -f infra/docker/graph-store.Dockerfile -t txpert-graph-store:0.1.0 .
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY infra/constraints.txt infra/constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY graph_store graph_store
COPY txpert_dist txpert_dist
RUN pip install -c infra/constraints.txt ".[s3]"

FROM python:${PYTHON}
RUN useradd --uid 1000 --create-home --shell /usr/sbin/nologin txpert
# numba refuses to run where it can keep nothing of what it compiles
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp/numba
COPY --from=build /opt/venv /opt/venv
WORKDIR /home/txpert
USER 1000:1000
EXPOSE 8815 9815
ENTRYPOINT ["txpert", "graph", "serve"]
# Other addresses than loopback need a token: TXPERT_GRAPH_TOKEN or --token-file.
CMD ["/graphs", "--host", "0.0.0.0", "--port", "8815", "--metrics-host", "0.0.0.0", "--metrics-port", "9815"]
