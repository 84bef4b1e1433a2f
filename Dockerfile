# docker build -t consistune .                                       PyTorch for the CPU
# docker build -t consistune --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .     for CUDA 12.8
# docker run --rm -v "$PWD:/work" consistune sample MODEL --out /work/samples.png
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir "torch>=2.6" --index-url "$TORCH_INDEX"
WORKDIR /build
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY src ./src
# The package itself, of no fixed version:
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[features,parquet]" && rm -rf /build
RUN useradd --create-home --uid 1000 user
USER 1000
WORKDIR /work
ENTRYPOINT ["consistune"]
CMD ["--help"]
