-- Removes the library install: the schema nv_embed, and the functions that users call. A table that is declared still would silently be embedded no longer.
DO $nv_embed$
DECLARE
    declared CONSTANT text := (
        SELECT string_agg(DISTINCT c.oid::regclass::text, ', ') FROM nv_embed.embedding AS e JOIN pg_class AS c ON c.oid = e.relation
    );
    called CONSTANT text := (
        SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc AS p JOIN nv_embed.installation AS i ON p.pronamespace = quote_ident(i.schema)::regnamespace
        WHERE p.proname IN (@names@)
    );
BEGIN
    IF declared IS NOT NULL THEN
        RAISE EXCEPTION 'tables are embedded still: %', declared
            USING ERRCODE = '2BP01', HINT = 'nv_embed.drop_auto_embed() first, or op.drop_auto_embedding() in an earlier revision';
    END IF;
    DROP SCHEMA nv_embed CASCADE;
    EXECUTE 'DROP FUNCTION IF EXISTS ' || called;
END
$nv_embed$
