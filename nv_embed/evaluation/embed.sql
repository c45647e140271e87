INSERT INTO pg_temp.nv_embed_question (collection, id, embedding)
VALUES (%(collection)s, %(id)s, nv_embed_query(%(text)s, %(relation)s::regclass))
