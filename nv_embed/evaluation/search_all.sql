-- All queries of a collection at once, where no time is taken.

SELECT q.id, array_agg((s.hit).id ORDER BY s.place)
FROM pg_temp.nv_embed_question AS q
CROSS JOIN LATERAL nv_search(NULL::{table}, q.embedding, k => %(k)s, dim => %(dim)s, rescore => %(rescore)s)
    WITH ORDINALITY AS s (hit, score, seq, start_char, end_char, content, place)
WHERE q.collection = %(collection)s
GROUP BY q.id
