"""`flows.finetune.finetune` and the like, which deployments made before 0.2 name on their server: for one release.

Installed as the package `flows`. Nothing of this project imports it.
"""
