# One file, three images: docker build --target coordinator|sampler|trainer .
# Everything is pinned by hash; the coordinator and the sampler hold no torch.

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY requirements/uv.txt requirements/dev.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/uv.txt
COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY shared shared
COPY services services
# dev.txt holds the build backend and what that needs; as constraints it installs nothing else of itself.
RUN uv build --no-cache --wheel --require-hashes --build-constraints requirements/dev.txt --out-dir /wheel

FROM python:3.11-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 HOME=/tmp \
    WINNOW_STATE_DIR=/var/lib/winnow
# A number, so that an orchestrator can see that it is not root. What volumes are mounted over is writable for it.
# The standard library comes without bytecode, and a read-only container could never keep what it compiles.
RUN groupadd --gid 10001 winnow \
    && useradd --uid 10001 --gid winnow --no-create-home --home-dir /tmp --shell /usr/sbin/nologin winnow \
    && install -d -o winnow -g winnow /var/lib/winnow /var/lib/winnow/artefacts /var/lib/winnow/scratch \
    && python -m compileall -q -x '/(tests?|site-packages)/' "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
WORKDIR /var/lib/winnow

FROM base AS coordinator
COPY requirements/coordinator.txt /tmp/requirements.txt
RUN pip install --compile --no-deps --require-hashes -r /tmp/requirements.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --compile --no-deps --no-index /tmp/wheel/*.whl
USER 10001:10001
VOLUME /var/lib/winnow/artefacts
EXPOSE 8000
# The empty ProxyHandler: a proxy for the outside world does not know this container's loopback.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ.get('WINNOW_COORDINATOR_PORT') or 8000}/readyz\", timeout=4)"]
CMD ["python", "-m", "winnow_coordinator"]

FROM base AS sampler
COPY requirements/sampler.txt /tmp/requirements.txt
RUN pip install --compile --no-deps --require-hashes -r /tmp/requirements.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --compile --no-deps --no-index /tmp/wheel/*.whl
USER 10001:10001
VOLUME /var/lib/winnow/artefacts
EXPOSE 8001
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ.get('WINNOW_SAMPLER_PORT') or 8001}/readyz\", timeout=4)"]
CMD ["python", "-m", "winnow_sampler"]

FROM base AS trainer
# torch.compile builds its kernels where it runs, and keeps them in the scratch volume: /tmp may not hold programs.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV TORCHINDUCTOR_CACHE_DIR=/var/lib/winnow/scratch/compiled TRITON_CACHE_DIR=/var/lib/winnow/scratch/compiled
COPY requirements/trainer.txt /tmp/requirements.txt
RUN pip install --compile --no-deps --require-hashes -r /tmp/requirements.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --compile --no-deps --no-index /tmp/wheel/*.whl
USER 10001:10001
VOLUME /var/lib/winnow/artefacts /var/lib/winnow/scratch
# A trainer serves nothing: it says in the database that it lives (GET /api/v1/workers), and that is what is asked.
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 \
    CMD ["python", "-m", "winnow_trainer.alive"]
CMD ["python", "-m", "winnow_trainer"]
