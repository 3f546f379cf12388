# The Makefile's own steps in an image with a shell; Python's packages bring GDAL and CUDA along. docs/docker.md shows its use.
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /terraseg
COPY requirements.txt pyproject.toml Makefile README.md LICENSE ./
COPY src src
RUN make .venv/installed
COPY . .
ENV PATH="/terraseg/.venv/bin:$PATH"
CMD ["bash"]
