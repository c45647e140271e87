-- user: who may have texts sent to the sidecar.
--
-- What sends one costs the device's time and takes a text out of the database. Everybody may, unless that is restricted to members of nv_embed_user.
-- Triggers of a table in mode sync embed with the rights of whoever writes, searches with those of whoever asks, so both need it; mode async does not.

CREATE OR REPLACE FUNCTION nv_embed.sending_functions() RETURNS SETOF regprocedure
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    VALUES
        ('@extschema@.nv_embed(text, int, text, text, text)'::regprocedure),
        ('@extschema@.nv_embed(text[], int, text, text, text)'),
        ('@extschema@.nv_embed_query(text, int, text)'),
        ('@extschema@.nv_count_tokens(text, text)'),
        ('@extschema@.nv_chunk(text, int, int, text)'),
        ('nv_embed.embed_passages(text[], int, text, text, text)'),
        ('nv_embed.embed_chunks(text[], int, int, int, text, text)'),
        ('nv_embed.embed_question(text, int, text, text)'),
        ('nv_embed.identify(int, text)');
$$;

COMMENT ON FUNCTION nv_embed.sending_functions() IS 'The functions that send a text to the sidecar; all others that embed call these, with the caller''s rights.';

CREATE OR REPLACE FUNCTION nv_embed.restrict_to_users(restricted boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    sending regprocedure;
BEGIN
    IF restricted IS NULL THEN
        RAISE EXCEPTION 'restricted is null' USING ERRCODE = '22023', HINT = 'give true, or false to let everybody have texts sent again';
    END IF;
    FOR sending IN SELECT nv_embed.sending_functions() LOOP
        EXECUTE format(CASE WHEN restricted THEN 'REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC' ELSE 'GRANT EXECUTE ON FUNCTION %s TO PUBLIC' END, sending);
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.restrict_to_users(boolean)
    IS 'Lets only members of nv_embed_user and nv_embed_worker have texts sent to the sidecar, or everybody again; for a superuser and members of nv_embed_admin.';
