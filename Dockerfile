# syntax=docker/dockerfile:1
# One image for heads, workers and MLflow's server. CUDA's runtime comes with torch's wheel for Linux, which
# names its versions exactly; the driver comes from the machine, by NVIDIA's container runtime. An image of
# CUDA underneath would bring the same libraries a second time.
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
# What is installed changes less often than the code: first the lock, with an empty package.
COPY constraints.txt pyproject.toml LICENSE README.md ./
RUN mkdir platform \
    && pip install --no-cache-dir --no-compile --prefix /install -c constraints.txt ".[server]"
COPY platform platform
RUN pip install --no-cache-dir --no-compile --prefix /install --no-deps --force-reinstall .

FROM ${PYTHON}
ARG CPU=0
COPY --from=build /install /usr/local
# A torch without CUDA would train on CPUs and say nothing: only `--build-arg CPU=1` (dev) may have that.
RUN python -c "import torch; assert torch.version.cuda or ${CPU}, 'torch has no CUDA'" \
    && useradd --uid 1000 --create-home ray
COPY jobs /app/jobs
# Where Ray starts here, jobs start, too: k8s/jobs name their scripts from here.
WORKDIR /app
USER 1000
ENV PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["panthalassa", "--help"]
