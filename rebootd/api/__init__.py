"""HTTP: what machines and operators may ask of a daemon, authentication, redirects, the event stream.

Here live routes, the JSON shapes of requests and answers, and the rules for listening. Here never live: what a request
means for the fleet (core's operations), commits or leadership (coordinator), or printing (cli).
"""
