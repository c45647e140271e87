SELECT (hit).name, score
FROM nv_search(NULL::public.python_docs, %(question)s, k => %(k)s)
ORDER BY score DESC
