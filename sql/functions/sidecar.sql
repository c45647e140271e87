-- sidecar: where it is, what it serves, whether it is well.

CREATE OR REPLACE FUNCTION nv_embed.configure(endpoint text, timeout_s real DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF configure.endpoint !~ '^(unix:/[^[:space:]]+|[^[:space:]/]+:[0-9]{1,5})$' IS NOT FALSE THEN
        RAISE EXCEPTION 'endpoint % is not an address', coalesce(quote_literal(configure.endpoint), 'null')
            USING ERRCODE = '22023', HINT = 'give host:port, or unix:/path/to/socket';
    END IF;
    IF NOT (coalesce(configure.timeout_s, 1) > 0 AND coalesce(configure.timeout_s, 1) <= 3600) THEN
        RAISE EXCEPTION 'timeout_s % is out of range', configure.timeout_s
            USING ERRCODE = '22023', HINT = 'give seconds above 0, 3600 at most';
    END IF;
    UPDATE nv_embed.settings AS s
    SET endpoint = configure.endpoint,
        timeout_s = coalesce(configure.timeout_s, s.timeout_s);
END
$$;

COMMENT ON FUNCTION nv_embed.configure(text, real)
    IS 'Says where the sidecar is and how many seconds a page of texts may take; for a superuser and members of nv_embed_admin.';

CREATE OR REPLACE FUNCTION nv_embed.models(
    OUT name text, OUT revision text, OUT native_dim int, OUT trained_dims int[], OUT declared_dims int[], OUT max_tokens int, OUT pooling text,
    OUT query_prompt text, OUT passage_prompt text, OUT device text, OUT "precision" text, OUT is_default boolean
) RETURNS SETOF record
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE ROWS 2
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].models()
$$;

COMMENT ON FUNCTION nv_embed.models()
    IS 'The models that the sidecar serves: dimensions they were trained for, and those the operator declared beside them.';

CREATE OR REPLACE FUNCTION nv_embed.health(OUT serving boolean, OUT message text, OUT answer_ms double precision)
LANGUAGE plpython3u VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].health()
$$;

COMMENT ON FUNCTION nv_embed.health() IS 'Whether the sidecar answers and its engine is alive; no error when it does not.';

CREATE OR REPLACE FUNCTION nv_embed.identify(
    INOUT dim int DEFAULT NULL, INOUT model text DEFAULT NULL, OUT revision text
) RETURNS record
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].identify(dim, model)
$$;

COMMENT ON FUNCTION nv_embed.identify(int, text)
    IS 'The dimension, model and revision that a declaration with these arguments gets; found out by embedding a word.';
