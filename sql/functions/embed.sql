-- embed: texts to vectors, by the sidecar.
--
-- Each body starts the session once and calls one method of it; the logic is nv_embed/plpython.py. The functions run as their owner, because only the
-- owner may read where the sidecar is. They open no cursor and read no table of the caller's, so there is nothing that the owner's rights could leak.
--
-- PARALLEL UNSAFE: waiting for the answer runs a query, and PL/Python runs each in a subtransaction.

CREATE OR REPLACE FUNCTION nv_embed.start_session() RETURNS void
LANGUAGE plpython3u SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    import sys

    library = plpy.execute("SELECT setting || '/nv_embed' AS path FROM pg_catalog.pg_config WHERE name = 'PKGLIBDIR'")[0]["path"]
    if library not in sys.path:
        sys.path.insert(0, library)
    from nv_embed.plpython import Session

    GD["nv_embed"] = Session(plpy)
$$;

COMMENT ON FUNCTION nv_embed.start_session() IS 'Imports the library from beside the server''s own libraries, where no setting of a user reaches.';

CREATE OR REPLACE FUNCTION @extschema@.nv_embed(
    input text, dim int DEFAULT NULL, input_type text DEFAULT 'passage', model text DEFAULT NULL, truncate text DEFAULT 'NONE'
) RETURNS vector
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE COST 100000
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].embed(input, dim, input_type, model, truncate)
$$;

COMMENT ON FUNCTION @extschema@.nv_embed(text, int, text, text, text)
    IS 'The vector of a text, of unit length; dim NULL is the model''s native width.';

CREATE OR REPLACE FUNCTION @extschema@.nv_embed(
    input text[], dim int DEFAULT NULL, input_type text DEFAULT 'passage', model text DEFAULT NULL, truncate text DEFAULT 'NONE'
) RETURNS vector[]
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE COST 1000000
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].embed_array(input, dim, input_type, model, truncate)
$$;

COMMENT ON FUNCTION @extschema@.nv_embed(text[], int, text, text, text)
    IS 'The vectors of many texts in one call, in their order; NULL for NULL.';

CREATE OR REPLACE FUNCTION @extschema@.nv_embed_query(query text, dim int DEFAULT NULL, model text DEFAULT NULL) RETURNS vector
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE COST 100000
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].embed_query(query, dim, model)
$$;

COMMENT ON FUNCTION @extschema@.nv_embed_query(text, int, text)
    IS 'The vector of a question, ahead of bulk work; kept for some seconds in the session.';

-- The two that embed for a generation: they also name the revision, and a sidecar that serves another one is refused.

CREATE OR REPLACE FUNCTION nv_embed.embed_passages(input text[], dim int, model text, revision text, truncate text) RETURNS text[]
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE COST 1000000
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].embed_array(input, dim, "passage", model, truncate, revision)
$$;

COMMENT ON FUNCTION nv_embed.embed_passages(text[], int, text, text, text) IS 'nv_embed for the rows of one generation, in text form, which both vector and halfvec read.';

CREATE OR REPLACE FUNCTION nv_embed.embed_chunks(
    input text[], max_tokens int, overlap int, dim int, model text, revision text, OUT places int[], OUT starts int[], OUT ends int[], OUT vectors text[]
) RETURNS record
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE COST 1000000
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].embed_chunks(input, max_tokens, overlap, dim, model, revision)
$$;

COMMENT ON FUNCTION nv_embed.embed_chunks(text[], int, int, int, text, text)
    IS 'Cuts texts and embeds the pieces: of each, the place of its text in the array, its first character and the one after its last, and its vector in text form.';

CREATE OR REPLACE FUNCTION nv_embed.embed_question(query text, dim int, model text, revision text) RETURNS vector
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE COST 100000
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].embed_query(query, dim, model, revision)
$$;

COMMENT ON FUNCTION nv_embed.embed_question(text, int, text, text) IS 'nv_embed_query for one generation.';

CREATE OR REPLACE FUNCTION @extschema@.nv_count_tokens(input text, model text DEFAULT NULL) RETURNS int
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE COST 10000
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].count_tokens(input, model)
$$;

COMMENT ON FUNCTION @extschema@.nv_count_tokens(text, text)
    IS 'How many tokens the model sees for a passage, special tokens and prompt included.';

CREATE OR REPLACE FUNCTION @extschema@.nv_chunk(
    input text, max_tokens int, overlap int DEFAULT 0, model text DEFAULT NULL,
    OUT seq int, OUT start_char int, OUT end_char int, OUT content text
) RETURNS SETOF record
LANGUAGE plpython3u STABLE SECURITY DEFINER PARALLEL UNSAFE COST 10000 ROWS 10
SET search_path = pg_catalog, pg_temp
AS $$
    if "nv_embed" not in GD:
        plpy.execute("SELECT nv_embed.start_session()")
    return GD["nv_embed"].chunk(input, max_tokens, overlap, model)
$$;

COMMENT ON FUNCTION @extschema@.nv_chunk(text, int, int, text)
    IS 'Cuts a text into pieces of at most max_tokens tokens; characters are counted from 0, end_char is exclusive.';

CREATE OR REPLACE FUNCTION nv_embed.measure(
    input text[], g nv_embed.generation, truncate text, OUT tokens bigint, OUT seconds double precision, OUT pieces bigint
)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    begun CONSTANT timestamptz := clock_timestamp();
BEGIN
    IF g.chunk_tokens IS NOT NULL THEN
        pieces := cardinality((nv_embed.embed_chunks(input, g.chunk_tokens, g.chunk_overlap, g.dim, g.model, g.revision)).places);
    ELSE
        -- A text that is too long is for the re-embedding to complain of.
        pieces := cardinality(nv_embed.embed_passages(input, g.dim, g.model, g.revision, CASE truncate WHEN 'NONE' THEN 'END' ELSE truncate END));
    END IF;
    seconds := extract(epoch FROM clock_timestamp() - begun);
    SELECT sum(@extschema@.nv_count_tokens(u.text, g.model)) INTO tokens FROM unnest(input) AS u (text);
END
$$;

COMMENT ON FUNCTION nv_embed.measure(text[], nv_embed.generation, text) IS 'How many tokens texts have for a generation''s model, how long it takes to embed them, and how many pieces they are cut into.';
