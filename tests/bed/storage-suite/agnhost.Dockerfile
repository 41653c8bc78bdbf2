# In place of registry.k8s.io/e2e-test-images/agnhost, where no registry can be reached: its program, and util-linux, which the suite
# calls in it to look at a node.
FROM debian:bookworm-slim
COPY agnhost /agnhost
ENTRYPOINT ["/agnhost"]
CMD ["pause"]
