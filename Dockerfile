# The operator's image, on nothing: image/build.sh prepares the folder that becomes its root, and no base image is pulled.
FROM scratch
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="run-invoker" \
      org.opencontainers.image.description="Reconciles the IAM invokers of Google Cloud Run services to match InvokerPolicy objects" \
      org.opencontainers.image.source="https://github.com/run-invoker/run-invoker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY . /
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/run-invoker"]
