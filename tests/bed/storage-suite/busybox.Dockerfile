# In place of registry.k8s.io/e2e-test-images/busybox, where no registry can be reached.
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN ["/bin/busybox", "mkdir", "-m", "1777", "/tmp"]
CMD ["sh"]
