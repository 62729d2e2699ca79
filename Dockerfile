FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY cdc cdc
COPY cdc_command cdc_command
COPY projectors projectors
RUN pip install --no-cache-dir --prefix=/install '.[mysql]'

FROM python:3.13-slim
COPY --from=build /install /usr/local
RUN useradd --system --no-create-home --uid 10001 cdc
WORKDIR /app
COPY config/cdc.toml config/cdc.toml
USER 10001
EXPOSE 9464
# Without the proxies that docker may put into the environment: they do not know our loopback.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:9464/live', timeout=2)"]
ENTRYPOINT ["cdc"]
CMD ["run"]
