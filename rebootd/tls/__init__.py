"""Certificates: whose they are, the contexts of listeners and clients, new files without a restart, and the authority.

Here live the words of a certificate (identity), its files and what may be wrong with them, TLS contexts that follow
their files, and what makes certificates (authority, which alone needs the library cryptography, beside revoked). Here
never live: what somebody may do (core.caller and the route table in api), listening (api), or requests (agent, consul).
"""
