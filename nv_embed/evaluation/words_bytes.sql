SELECT sum(pg_relation_size(i.indexrelid))
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_am AS m ON m.oid = c.relam
WHERE i.indrelid = %(relation)s::regclass AND m.amname = 'gin'
