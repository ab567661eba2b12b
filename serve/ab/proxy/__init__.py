"""The way of a request from a client to an arm and back.

`Proxy` lets a request in: who asks, what for, which arm is to answer. `Failover` asks arms until one begins to answer.
`StreamResponse` sends that answer on. `Service.ended` tells the listeners how each attempt at an arm ended.
"""
