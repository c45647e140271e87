-- Whose a table of this name is: NULL where there is none, false where it is not the demo's.
SELECT CASE
    WHEN to_regclass('public.python_docs') IS NOT NULL
    THEN coalesce(obj_description(to_regclass('public.python_docs'), 'pg_class') = 'made by nv-embed demo', false)
END
