SELECT (s.hit).id
FROM nv_search(
    NULL::{table}, (SELECT q.embedding FROM pg_temp.nv_embed_question AS q WHERE q.collection = %(collection)s AND q.id = %(id)s),
    k => %(k)s, dim => %(dim)s, rescore => %(rescore)s
) AS s
