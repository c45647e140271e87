-- Any word of the query may match, since hardly a document has them all. Frequency over the logarithm of the length finds the most.

SELECT d.id
FROM {table} AS d, nv_embed.any_word(%(language)s, %(text)s) AS q
WHERE d.words @@ q
ORDER BY ts_rank(d.words, q, 1) DESC, d.id
LIMIT %(k)s
