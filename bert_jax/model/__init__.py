"""The network: BERT's blocks and heads.

Rule: functions of arrays and of `BertConfig`. No files, no optimizer, no text;
of the devices only what the mesh in context tells (`sharding.devices`).
"""
