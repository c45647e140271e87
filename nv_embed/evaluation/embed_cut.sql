-- As embed.sql, of a query that is longer than the model reads: its end is cut off.

INSERT INTO pg_temp.nv_embed_question (collection, id, embedding)
VALUES (%(collection)s, %(id)s, nv_embed(%(text)s, input_type => 'query', model => %(model)s, truncate => 'END'))
