"""All that proxykd says to a Kubernetes cluster; the library never imports it.

api           one way to reach the API server: verbs on plain objects, with deadlines, retries and clear errors
connection    the credentials of a kubeconfig or of a pod, and a single request
kinds         the kinds of object that are read or written, and where they lie
names         resources and labels that more than one module writes or reads
"""
