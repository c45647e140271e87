-- library: the counterparts of what the extension does by asking a sidecar from inside the server (`sidecar.sql`, `embed.sql`).
--
-- Models are known because `nv-embed install --library --endpoint` recorded them; vectors are made by workers alone.

-- Loads pgvector into this session, for the same reason as nv_embed.loads_pgvector.
SELECT '[0]'::vector IS NOT NULL;

CREATE OR REPLACE FUNCTION nv_embed.default_mode() RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
RETURN 'async';

COMMENT ON FUNCTION nv_embed.default_mode() IS 'The mode of a declaration that names none.';

CREATE OR REPLACE FUNCTION nv_embed.check_sync() RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'this database has no PL/Python, so no text can be embedded inside of it'
        USING ERRCODE = '0A000', HINT = 'use mode async and a worker: nv-embed worker --database-url …';
END
$$;

COMMENT ON FUNCTION nv_embed.check_sync() IS 'Raises an error where no text can be embedded inside of the server, as here.';

CREATE OR REPLACE FUNCTION nv_embed.embed_passages(input text[], dim int, model text, revision text, truncate text) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM nv_embed.check_sync();
END
$$;

COMMENT ON FUNCTION nv_embed.embed_passages(text[], int, text, text, text) IS 'Raises the error of check_sync; in the extension it embeds the rows of one generation.';

CREATE OR REPLACE FUNCTION nv_embed.measure(
    input text[], g nv_embed.generation, truncate text, OUT tokens bigint, OUT seconds double precision, OUT pieces bigint
)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT NULL::bigint, NULL::double precision, NULL::bigint;
END;

COMMENT ON FUNCTION nv_embed.measure(text[], nv_embed.generation, text) IS 'NULL; in the extension it asks the sidecar for tokens and time.';

CREATE OR REPLACE FUNCTION nv_embed.embed_chunks(
    input text[], max_tokens int, overlap int, dim int, model text, revision text, OUT places int[], OUT starts int[], OUT ends int[], OUT vectors text[]
) RETURNS record
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM nv_embed.check_sync();
END
$$;

COMMENT ON FUNCTION nv_embed.embed_chunks(text[], int, int, int, text, text) IS 'Raises the error of check_sync; in the extension it cuts texts and embeds the pieces.';

CREATE OR REPLACE FUNCTION nv_embed.embed_question(query text, dim int, model text, revision text) RETURNS vector
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'this database has no PL/Python, so no question can be embedded inside of it'
        USING ERRCODE = '0A000', HINT = 'ask the sidecar for its vector (nv_embed.client), and give that as embedding';
END
$$;

COMMENT ON FUNCTION nv_embed.embed_question(text, int, text, text) IS 'Raises an error; in the extension it embeds a question.';

CREATE OR REPLACE FUNCTION nv_embed.check_canaries() RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'this database has no PL/Python, so no canary can be asked inside of it'
        USING ERRCODE = '0A000', HINT = 'min_overlap needs no question; or stop before the cut-over (nv-embed reembed --no-cut-over) and ask the next column yourself';
END
$$;

COMMENT ON FUNCTION nv_embed.check_canaries() IS 'Raises an error where no question can be embedded inside of the server, as here.';

CREATE OR REPLACE FUNCTION nv_embed.embed_searched(query text, relation regclass, target name, is_by_name boolean DEFAULT false) RETURNS vector
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN nv_embed.embed_question(query, NULL, NULL, NULL);
END
$$;

COMMENT ON FUNCTION nv_embed.embed_searched(text, regclass, name, boolean) IS 'Raises an error; in the extension it embeds the question of a search.';

CREATE OR REPLACE FUNCTION nv_embed.find_model(model text) RETURNS nv_embed.model
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known CONSTANT text := (SELECT string_agg(m.name, ', ' ORDER BY m.is_default DESC, m.name) FROM nv_embed.model AS m);
    m nv_embed.model;
BEGIN
    IF known IS NULL THEN
        RAISE EXCEPTION 'no model is known in this database'
            USING ERRCODE = '58000', HINT = 'its owner runs nv-embed install --library --endpoint HOST:PORT, which asks the sidecar';
    END IF;
    -- As for a sidecar: capitals do not matter, and the part before the slash may be left out.
    SELECT * INTO m
    FROM nv_embed.model AS s
    WHERE CASE WHEN nullif(model, '') IS NULL THEN s.is_default ELSE lower(model) IN (lower(s.name), lower(regexp_replace(s.name, '^.*/', ''))) END
    ORDER BY lower(s.name) = lower(model) DESC, s.is_default DESC, s.name
    LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'model % is not served here', quote_literal(left(model, 100))
            USING ERRCODE = '42704',
                HINT = format('known are %s; where the sidecar serves others by now, run nv-embed install --library --endpoint HOST:PORT again', known);
    END IF;
    RETURN m;
END
$$;

COMMENT ON FUNCTION nv_embed.find_model(text) IS 'The known model of this name, the default where it is null, or an error that names the ones there are.';

CREATE OR REPLACE FUNCTION nv_embed.identify(INOUT dim int DEFAULT NULL, INOUT model text DEFAULT NULL, OUT revision text) RETURNS record
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m CONSTANT nv_embed.model := nv_embed.find_model(model);
BEGIN
    IF dim NOT BETWEEN 1 AND 16000 THEN
        RAISE EXCEPTION '% is not a number of dimensions', dim USING ERRCODE = '22023', HINT = 'leave dim out for the model''s native width';
    END IF;
    IF dim <> ALL (m.trained_dims || m.declared_dims) THEN
        RAISE EXCEPTION 'model % was not trained for % dimensions, but for %', m.name, dim,
            array_to_string(m.trained_dims, ', ') || coalesce(' (and the operator allows ' || nullif(array_to_string(m.declared_dims, ', '), '') || ')', '')
            USING ERRCODE = '22023',
                HINT = format(
                    'leave dim out for %s; only the sidecar''s operator can allow more, with serve --dims, and nv-embed install --library then records it',
                    m.native_dim
                );
    END IF;
    dim := coalesce(dim, m.native_dim);
    model := m.name;
    revision := m.revision;
END
$$;

COMMENT ON FUNCTION nv_embed.identify(int, text)
    IS 'The dimension, model and revision that a declaration with these arguments gets, of the models that were recorded.';

CREATE OR REPLACE FUNCTION nv_embed.model_dims(g nv_embed.generation) RETURNS int[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(
        SELECT g.dim UNION SELECT d FROM nv_embed.model AS m, unnest(m.trained_dims || m.declared_dims) AS d WHERE m.name = g.model AND d < g.dim
    );
END
$$;

COMMENT ON FUNCTION nv_embed.model_dims(nv_embed.generation) IS 'The widths that a generation''s vectors can be cut to.';

-- What it says replaces what was known: a model that is not served any more would leave its rows waiting. Declarations keep theirs.
CREATE OR REPLACE FUNCTION nv_embed.record_models(models jsonb) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    told CONSTANT nv_embed.model[] := ARRAY(
        SELECT ROW(t.name, t.revision, t.native_dim, t.trained_dims, t.declared_dims, t.place = 1)::nv_embed.model
        FROM ROWS FROM (
            jsonb_to_recordset(models) AS (name text, revision text, native_dim int, trained_dims int[], declared_dims int[])
        ) WITH ORDINALITY AS t (name, revision, native_dim, trained_dims, declared_dims, place)
    );
    gone bigint;
    changed bigint;
BEGIN
    DELETE FROM nv_embed.model AS m WHERE m.name NOT IN (SELECT t.name FROM unnest(told) AS t);
    GET DIAGNOSTICS gone = ROW_COUNT;
    INSERT INTO nv_embed.model AS m
    SELECT * FROM unnest(told)
    ON CONFLICT (name) DO UPDATE
    SET revision = excluded.revision, native_dim = excluded.native_dim, trained_dims = excluded.trained_dims, declared_dims = excluded.declared_dims,
        is_default = excluded.is_default
    WHERE m.* IS DISTINCT FROM excluded.*;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN gone + changed;
END
$$;

COMMENT ON FUNCTION nv_embed.record_models(jsonb)
    IS 'Says which models a sidecar serves, its default first: name, revision, native_dim, trained_dims, declared_dims. Returns how many rows that changed.';

CREATE OR REPLACE FUNCTION nv_embed.record_installation(version text, schema name, code text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO nv_embed.installation (version, schema, code) VALUES (record_installation.version, record_installation.schema, record_installation.code)
    ON CONFLICT (only_row) DO UPDATE SET version = excluded.version, schema = excluded.schema, code = excluded.code;
$$;

COMMENT ON FUNCTION nv_embed.record_installation(text, name, text) IS 'Says which version of the library install this is.';
