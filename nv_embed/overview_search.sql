-- A vector without a direction has NaN for a score, which JSON has not.
SELECT left(concat_ws(', ', {key}), %(key_characters)s) AS key, nullif(found.score, 'NaN') AS score, left(coalesce(found.content, {text}), %(text_characters)s) AS text
FROM {functions}.nv_search(
    NULL::{relation}, %(vector)s::{pgvector}.vector, k => %(k)s, target => %(target)s, dim => %(dim)s, rescore => %(rescore)s
) WITH ORDINALITY AS found
CROSS JOIN LATERAL (SELECT (found.hit).*) AS nv_embed_hit
ORDER BY found.ordinality
