DO $$
BEGIN
    IF EXISTS (SELECT FROM nv_embed.embedding WHERE relation = to_regclass('public.python_docs')) THEN
        PERFORM nv_embed.drop_auto_embed('public.python_docs');
    END IF;
END
$$;

DROP TABLE IF EXISTS public.python_docs;
