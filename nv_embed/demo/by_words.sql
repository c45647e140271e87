-- Any word of the question may match, since hardly a text has them all. ts_rank without normalisation finds the most here: ts_rank_cd and all other
-- normalisations were tried.
SELECT d.name, ts_rank(d.words, q.any_word)::double precision AS score
FROM public.python_docs AS d, (SELECT replace(plainto_tsquery('english', %(question)s)::text, '&', '|')::tsquery AS any_word) AS q
WHERE d.words @@ q.any_word
ORDER BY score DESC, d.name
LIMIT %(k)s
