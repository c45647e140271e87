-- sidecar: what it serves, whether it is well, and that it can be asked from inside the server.
--
-- The library install has counterparts of `default_mode`, `check_sync`, `check_canaries` and `identify` (`library.sql`), since nothing in there can ask a sidecar.

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

CREATE OR REPLACE FUNCTION nv_embed.model_dims(g nv_embed.generation) RETURNS int[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(
        SELECT g.dim UNION SELECT d FROM nv_embed.models() AS m, unnest(m.trained_dims || m.declared_dims) AS d WHERE m.name = g.model AND d < g.dim
    );
EXCEPTION WHEN system_error OR insufficient_resources OR invalid_authorization_specification THEN
    RETURN ARRAY[g.dim]; -- the sidecar is away, full, or does not know us
END
$$;

COMMENT ON FUNCTION nv_embed.model_dims(nv_embed.generation) IS 'The widths that a generation''s vectors can be cut to, as far as the sidecar says.';

CREATE OR REPLACE FUNCTION nv_embed.default_mode() RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
RETURN 'sync';

COMMENT ON FUNCTION nv_embed.default_mode() IS 'The mode of a declaration that names none.';

CREATE OR REPLACE FUNCTION nv_embed.check_sync() RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
END
$$;

COMMENT ON FUNCTION nv_embed.check_sync() IS 'Raises an error where no text can be embedded inside of the server; here it can be.';

CREATE OR REPLACE FUNCTION nv_embed.check_canaries() RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
END
$$;

COMMENT ON FUNCTION nv_embed.check_canaries() IS 'Raises an error where no question can be embedded inside of the server; here it can be.';
