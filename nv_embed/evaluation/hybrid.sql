SELECT (s.hit).id
FROM nv_hybrid_search(
    NULL::{table}, %(text)s, k => %(k)s, config => %(language)s, document => 'words',
    embedding => (SELECT q.embedding FROM pg_temp.nv_embed_question AS q WHERE q.collection = %(collection)s AND q.id = %(id)s)
) AS s
