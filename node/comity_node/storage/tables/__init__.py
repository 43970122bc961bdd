"""The tables of a node's database, by area; `comity_node.storage.schema` creates them.

All are STRICT (https://www.sqlite.org/stricttables.html). Times are milliseconds since the Unix epoch, digests are 32
raw bytes, identifiers of tasks, batches and messages 16 raw bytes. Lists of byte strings are packed by
`comity_node.storage.packing`.

What a version of the schema that was released has created is never edited: a later version adds.
"""
