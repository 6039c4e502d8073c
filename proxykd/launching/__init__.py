"""Work that one process or many may do: here, under ``torchrun``, or wherever a cluster has room.

A stage says what is to be done (``Work``) and hands it to a ``Launcher``; which one is the environment's decision, so
that a run's specification is the same on a laptop and on a cluster.

    work            Work, the Launcher protocol, and the launcher of this process
    torchrun        the launcher of several processes of this machine
    choice          which launcher the environment asks for
    node            the first process of a pod that takes part: torchrun, and exit statuses that tell why it ended
    worker          what every process does around its part: joining, errors, the end
    world           how many processes there are, and which one this is
    interruption    a request to stop, heeded by all processes at the same step
"""
