\echo Use "CREATE EXTENSION nv_embed CASCADE" to load this file. \quit
-- namespace: the schema of everything that is not called every day, and the role that may administer it.

CREATE SCHEMA nv_embed;
COMMENT ON SCHEMA nv_embed IS 'nv_embed: declarations, administration and the machinery behind nv_embed(), nv_search() and the triggers.';
GRANT USAGE ON SCHEMA nv_embed TO PUBLIC;

-- Roles belong to the cluster, so another database of it may have made this one already.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'nv_embed_admin') THEN
        CREATE ROLE nv_embed_admin NOLOGIN;
    END IF;
END
$$;
-- settings: where the sidecar is.
--
-- A table that only its owner can read, and not a GUC: any user can set a GUC, and would send everybody's texts elsewhere. It is not part of a dump:
-- a copy of the database restored elsewhere must not talk to this one's sidecar.

CREATE TABLE nv_embed.settings (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    endpoint  text,
    timeout_s real NOT NULL DEFAULT 60 CHECK (timeout_s > 0 AND timeout_s <= 3600)
);

COMMENT ON TABLE nv_embed.settings IS 'Where the sidecar is; changed by nv_embed.configure(), read by its owner only.';
COMMENT ON COLUMN nv_embed.settings.endpoint IS 'host:port or unix:/path; NULL until configured.';
COMMENT ON COLUMN nv_embed.settings.timeout_s IS 'Seconds to wait for the answer to one page of texts.';

-- Without a policy only the owner passes: members of pg_read_all_data and pg_write_all_data do not.
ALTER TABLE nv_embed.settings ENABLE ROW LEVEL SECURITY;

INSERT INTO nv_embed.settings DEFAULT VALUES;
-- embedding and generation: what is declared, and which model made the vectors.
--
-- Declarations are as public as pg_class: anybody may read them, and a row may be written by whoever owns the table that it names. Row-level security
-- says so once, and the functions that write here need no rights of their own.

CREATE TABLE nv_embed.embedding (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation regclass NOT NULL,
    target   name NOT NULL,
    source   text NOT NULL,
    mode     text NOT NULL CHECK (mode IN ('sync')),
    truncate text NOT NULL CHECK (truncate IN ('NONE', 'START', 'END')),
    UNIQUE (relation, target)
);

COMMENT ON TABLE nv_embed.embedding IS 'Declarations: this table, these source columns, this target column.';
COMMENT ON COLUMN nv_embed.embedding.source IS 'Template over the table''s columns, {title}: {body}; a doubled brace is a brace.';

CREATE TABLE nv_embed.generation (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    embedding bigint NOT NULL REFERENCES nv_embed.embedding ON DELETE CASCADE,
    model     text NOT NULL,
    revision  text NOT NULL,
    dim       int NOT NULL CHECK (dim > 0),
    storage   text NOT NULL CHECK (storage IN ('vector', 'halfvec')),
    target    name NOT NULL,
    state     text NOT NULL DEFAULT 'live' CHECK (state IN ('live'))
);

COMMENT ON TABLE nv_embed.generation IS 'One embedding''s vectors by one model at one dimension and storage type; exactly one is live.';
COMMENT ON COLUMN nv_embed.generation.revision IS 'A sidecar that serves another revision is refused, so that two models never share a column.';
COMMENT ON COLUMN nv_embed.generation.target IS 'The column that holds this generation''s vectors.';

CREATE UNIQUE INDEX generation_live ON nv_embed.generation (embedding) WHERE state = 'live';
CREATE INDEX generation_embedding ON nv_embed.generation (embedding);

-- Whether the current role owns a table, directly or through a role that it is a member of.
CREATE FUNCTION nv_embed.owns(relation regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN (SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE') FROM pg_catalog.pg_class AS c WHERE c.oid = relation);

COMMENT ON FUNCTION nv_embed.owns(regclass) IS 'Whether the current role owns this table.';

ALTER TABLE nv_embed.embedding ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON nv_embed.embedding FOR SELECT USING (true);
-- NULL is a table that was dropped: whoever meets its declaration may clear it away.
CREATE POLICY written_by_owner ON nv_embed.embedding USING (nv_embed.owns(relation) IS NOT FALSE) WITH CHECK (nv_embed.owns(relation));

ALTER TABLE nv_embed.generation ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON nv_embed.generation FOR SELECT USING (true);
CREATE POLICY written_by_owner ON nv_embed.generation
    USING (EXISTS (SELECT FROM nv_embed.embedding AS e WHERE e.id = generation.embedding AND nv_embed.owns(e.relation)));

-- By columns, so that nobody chooses a declaration's number.
GRANT SELECT, DELETE ON nv_embed.embedding, nv_embed.generation TO PUBLIC;
GRANT INSERT (relation, target, source, mode, truncate) ON nv_embed.embedding TO PUBLIC;
GRANT INSERT (embedding, model, revision, dim, storage, target) ON nv_embed.generation TO PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('nv_embed.embedding', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.generation', '');
-- The sequences too: a restored database must not give out a declaration's number again.
SELECT pg_catalog.pg_extension_config_dump('nv_embed.embedding_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.generation_id_seq', '');
-- nv_truncate: a shorter Matryoshka vector from a longer one.
--
-- Written as SQL-standard bodies: names are bound when the function is made, so no search_path can bend them, and the planner can inline them.

CREATE OR REPLACE FUNCTION nv_embed.refuse_dim(dim int, width int) RETURNS int
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'cannot truncate a vector of % dimensions to %', width, coalesce(dim::text, 'null')
        USING ERRCODE = '22023', HINT = format('give a dim from 1 to %s', width);
END
$$;

COMMENT ON FUNCTION nv_embed.refuse_dim(int, int) IS 'Raises the error of nv_truncate for a dim out of range.';

CREATE OR REPLACE FUNCTION @extschema@.nv_truncate(v vector, dim int) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN l2_normalize(subvector(v, 1, CASE WHEN dim BETWEEN 1 AND vector_dims(v) THEN dim ELSE nv_embed.refuse_dim(dim, vector_dims(v)) END));

COMMENT ON FUNCTION @extschema@.nv_truncate(vector, int)
    IS 'The first dim components of a vector from a Matryoshka-trained model, scaled back to unit length.';

CREATE OR REPLACE FUNCTION @extschema@.nv_truncate(v halfvec, dim int) RETURNS halfvec
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN l2_normalize(subvector(v, 1, CASE WHEN dim BETWEEN 1 AND vector_dims(v) THEN dim ELSE nv_embed.refuse_dim(dim, vector_dims(v)) END));

COMMENT ON FUNCTION @extschema@.nv_truncate(halfvec, int)
    IS 'The first dim components of a vector from a Matryoshka-trained model, scaled back to unit length.';
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
-- template: '{title}: {body}' to SQL.
--
-- A template is taken apart once, at the declaration, and again whenever a statement is built; it is never executed as such. Column names reach SQL by
-- format('%I') and the text between them by format('%L'), so a template cannot smuggle anything in. The texts are compared as they are, whatever collations
-- the columns have.

CREATE OR REPLACE FUNCTION nv_embed.parse_template(source text)
RETURNS TABLE (place int, column_name name, literal text)
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part text;
    text_so_far text := '';
BEGIN
    place := 0;
    -- The alternatives, in order: a doubled brace, a column, a stray brace, a run of anything else.
    FOR part IN SELECT m[1] FROM regexp_matches(source, '(\{\{|\}\}|\{[^{}]+\}|[{}]|[^{}]+)', 'g') AS m LOOP
        CASE
            WHEN part IN ('{{', '}}') THEN
                text_so_far := text_so_far || left(part, 1);
            WHEN part IN ('{', '}') THEN
                RAISE EXCEPTION 'the source template % has a single brace', quote_literal(source)
                    USING ERRCODE = '22023', HINT = 'write columns as {name}, and a brace itself doubled';
            WHEN left(part, 1) = '{' THEN
                place := place + 1;
                literal := text_so_far;
                column_name := substr(part, 2, length(part) - 2);
                RETURN NEXT;
                text_so_far := '';
            ELSE
                text_so_far := text_so_far || part;
        END CASE;
    END LOOP;
    IF place = 0 THEN
        RAISE EXCEPTION 'the source template % names no column', quote_literal(source)
            USING ERRCODE = '22023', HINT = 'write columns as {name}, for example {title}: {body}';
    END IF;
    IF text_so_far <> '' THEN
        place := place + 1;
        literal := text_so_far;
        column_name := NULL;
        RETURN NEXT;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.parse_template(text) IS 'The parts of a source template in order: the text before a column, and the column.';

CREATE OR REPLACE FUNCTION nv_embed.rendered(source text, alias name) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT format(
        '(pg_catalog.concat(%s) COLLATE pg_catalog."default")',
        string_agg(
            concat_ws(', ', quote_literal(nullif(p.literal, '')), quote_ident(alias) || '.' || quote_ident(p.column_name)),
            ', ' ORDER BY p.place
        )
    )
    FROM nv_embed.parse_template(source) AS p
);

COMMENT ON FUNCTION nv_embed.rendered(text, name) IS 'An SQL expression: the text of a row by this template; a NULL column reads as the empty text.';

CREATE OR REPLACE FUNCTION nv_embed.has_content(source text, alias name) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT format('(pg_catalog.concat(%s) COLLATE pg_catalog."default") OPERATOR(pg_catalog.~) %L', string_agg(format('%I.%I', alias, p.column_name), ', ' ORDER BY p.place), '[^[:space:]]')
    FROM nv_embed.parse_template(source) AS p
    WHERE p.column_name IS NOT NULL
);

COMMENT ON FUNCTION nv_embed.has_content(text, name)
    IS 'An SQL expression: whether any source column of a row has more than white space. A row without content has no vector.';
-- key: the columns of a table's primary key, with their types and their own equality.

CREATE OR REPLACE FUNCTION nv_embed.key_columns(relation regclass)
RETURNS TABLE (place bigint, column_name name, type text, equals text)
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    -- The operator is the key index's own, written with its schema: '=' for citext, say, lives where the extension was put.
    SELECT k.place, a.attname, format('%I.%I', y.nspname, t.typname), format('OPERATOR(%I.%s)', n.nspname, o.oprname)
    FROM pg_index AS i
    CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k (attnum, opclass, place)
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    JOIN pg_type AS t ON t.oid = a.atttypid
    JOIN pg_namespace AS y ON y.oid = t.typnamespace
    JOIN pg_opclass AS c ON c.oid = k.opclass
    JOIN pg_amop AS m
        ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype AND m.amopstrategy = 3
    JOIN pg_operator AS o ON o.oid = m.amopopr
    JOIN pg_namespace AS n ON n.oid = o.oprnamespace
    WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts;
END;

COMMENT ON FUNCTION nv_embed.key_columns(regclass) IS 'Columns of the primary key in order, each with its type and the operator that compares it.';
-- auto_embed: keep a text column searchable by meaning.
--
-- Declaring is done with the caller's own rights: they alter their table, and row-level security lets them write the declaration of a table they own.

CREATE OR REPLACE FUNCTION nv_embed.check_relation(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    c pg_class;
BEGIN
    IF relation IS NULL THEN
        RAISE EXCEPTION 'relation is null' USING ERRCODE = '22004', HINT = 'name a table';
    END IF;
    SELECT * INTO STRICT c FROM pg_class AS s WHERE s.oid = relation;
    IF c.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '% is not a table', nv_embed.qualified(relation)
            USING ERRCODE = '42809', HINT = 'declare the table that a view or a foreign table reads';
    END IF;
    IF NOT nv_embed.owns(relation) THEN
        RAISE EXCEPTION 'must be owner of table %', nv_embed.qualified(relation)
            USING ERRCODE = '42501', HINT = format('its owner is %I', pg_get_userbyid(c.relowner));
    END IF;
    IF NOT EXISTS (SELECT FROM nv_embed.key_columns(relation)) THEN
        RAISE EXCEPTION 'table % has no primary key', nv_embed.qualified(relation)
            USING ERRCODE = '42P16', HINT = 'rows are found again by their primary key: add one';
    END IF;
    IF EXISTS (
        SELECT FROM nv_embed.key_columns(relation) AS k
        JOIN pg_attribute AS a ON a.attrelid = relation AND a.attname = k.column_name
        JOIN pg_type AS t ON t.oid = a.atttypid
        WHERE t.typcategory = 'A'
    ) THEN
        RAISE EXCEPTION 'the primary key of % contains an array', nv_embed.qualified(relation)
            USING ERRCODE = '0A000', HINT = 'use a primary key of scalar columns';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_relation(regclass) IS 'Raises an error for a relation that cannot be auto-embedded by the current role.';

CREATE OR REPLACE FUNCTION nv_embed.check_source(relation regclass, source text, target name) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    column_name name;
BEGIN
    IF source IS NULL THEN
        RAISE EXCEPTION 'source is null' USING ERRCODE = '22004', HINT = 'write columns as {name}, for example {title}: {body}';
    END IF;
    FOR column_name IN SELECT p.column_name FROM nv_embed.parse_template(source) AS p WHERE p.column_name IS NOT NULL LOOP
        IF column_name = target THEN
            RAISE EXCEPTION 'the target column % is also a source', quote_ident(target) USING ERRCODE = '22023', HINT = 'embed another column';
        END IF;
        IF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped) THEN
            RAISE EXCEPTION 'table % has no column %', nv_embed.qualified(relation), quote_ident(column_name)
                USING ERRCODE = '42703', HINT = format('the source template is %L; names in it are written as in the catalog, unquoted', source);
        END IF;
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.check_source(regclass, text, name) IS 'Raises an error for a source template that this table cannot fill.';

CREATE OR REPLACE FUNCTION nv_embed.add_target(relation regclass, target name, storage text, dim int) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted CONSTANT text := nv_embed.type_sql(storage, dim);
    found_type text;
    has_vectors boolean;
BEGIN
    SELECT format('%I.%I', n.nspname, t.typname) || CASE WHEN a.atttypmod > 0 THEN format('(%s)', a.atttypmod) ELSE '' END
    INTO found_type
    FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid JOIN pg_namespace AS n ON n.oid = t.typnamespace
    WHERE a.attrelid = relation AND a.attname = target AND a.attnum > 0 AND NOT a.attisdropped;
    IF found_type IS NULL THEN
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', nv_embed.qualified(relation), target, wanted);
    ELSIF found_type <> wanted THEN
        RAISE EXCEPTION 'column % of % is a %, not a %', quote_ident(target), nv_embed.qualified(relation), found_type, wanted
            USING ERRCODE = '42804', HINT = 'name another target, or give the dim and storage that this column has';
    ELSE
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE %I IS NOT NULL)', nv_embed.qualified(relation), target) INTO has_vectors;
        IF has_vectors THEN
            RAISE WARNING 'column % of % has vectors already, which are kept as those of the present texts and model', quote_ident(target), nv_embed.qualified(relation)
                USING HINT = format('if another model or an older text made them, UPDATE %s SET %I = NULL makes them anew', nv_embed.qualified(relation), target);
        END IF;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.add_target(regclass, name, text, int) IS 'Adds the column for the vectors, or accepts one of just this type.';

CREATE OR REPLACE FUNCTION nv_embed.check_options(
    mode text, storage text, chunk_tokens int, chunk_overlap int, truncate text
) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF mode IN ('async', 'off') OR chunk_tokens IS NOT NULL THEN
        RAISE EXCEPTION '% is not available in this version', CASE WHEN chunk_tokens IS NULL THEN 'mode ' || quote_literal(mode) ELSE 'chunk_tokens' END
            USING ERRCODE = '0A000', HINT = 'this version embeds whole rows in mode sync; nv_chunk() cuts texts by hand';
    END IF;
    IF mode = 'sync' IS NOT TRUE THEN
        RAISE EXCEPTION 'mode % is unknown', coalesce(quote_literal(mode), 'null') USING ERRCODE = '22023', HINT = 'mode is sync';
    END IF;
    IF storage IN ('halfvec', 'vector') IS NOT TRUE THEN
        RAISE EXCEPTION 'storage % is unknown', coalesce(quote_literal(storage), 'null') USING ERRCODE = '22023', HINT = 'storage is halfvec or vector';
    END IF;
    IF truncate IN ('NONE', 'START', 'END') IS NOT TRUE THEN
        RAISE EXCEPTION 'truncate % is unknown', coalesce(quote_literal(truncate), 'null') USING ERRCODE = '22023', HINT = 'truncate is one of NONE, START, END';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_options(text, text, int, int, text) IS 'Raises an error for an option that auto_embed does not know.';

-- More rows than a few are left to nv_embed.refresh(), because a declaration holds the lock that adding a column takes.
CREATE OR REPLACE FUNCTION nv_embed.has_few_to_fill(relation regclass, target name) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    few CONSTANT int := 1000;
    existing bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM (SELECT FROM %s WHERE %I IS NULL LIMIT %s) AS s', nv_embed.qualified(relation), target, few + 1) INTO existing;
    IF existing > few THEN
        RAISE NOTICE 'the rows that % already has are not embedded yet', nv_embed.qualified(relation)
            USING HINT = format('SELECT nv_embed.refresh(%L, %L) embeds them', nv_embed.qualified(relation), target);
    END IF;
    RETURN existing BETWEEN 1 AND few;
END
$$;

COMMENT ON FUNCTION nv_embed.has_few_to_fill(regclass, name) IS 'Whether a newly declared table has rows to embed, and few enough to do it at once.';

CREATE OR REPLACE FUNCTION nv_embed.declare_embedding(
    relation regclass, source text, target name, dim int, model text, mode text, storage text, truncate text
) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    identity record;
    new_id bigint;
BEGIN
    PERFORM nv_embed.check_relation(relation);
    PERFORM nv_embed.check_source(relation, source, target);
    -- The oid of a table that was dropped may come back as another table's.
    DELETE FROM nv_embed.embedding AS e WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = e.relation);
    IF EXISTS (SELECT FROM nv_embed.embedding AS e WHERE e.relation = declare_embedding.relation AND e.target = declare_embedding.target) THEN
        RAISE EXCEPTION 'column % of % is auto-embedded already', quote_ident(target), nv_embed.qualified(relation)
            USING ERRCODE = '42710', HINT = format('call nv_embed.drop_auto_embed(%L, %L) first, or name another target', nv_embed.qualified(relation), target);
    END IF;
    SELECT * INTO STRICT identity FROM nv_embed.identify(dim, model);
    PERFORM nv_embed.add_target(relation, target, storage, identity.dim);
    INSERT INTO nv_embed.embedding (relation, target, source, mode, truncate)
    VALUES (relation, target, source, mode, truncate)
    RETURNING id INTO new_id;
    INSERT INTO nv_embed.generation (embedding, model, revision, dim, storage, target)
    VALUES (new_id, identity.model, identity.revision, identity.dim, storage, target);
    -- One trigger an event: transition tables allow neither a column list nor several events.
    EXECUTE format(
        'CREATE TRIGGER %I AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION nv_embed.embed_written_rows(%L)',
        format('nv_embed_%s_insert', new_id), nv_embed.qualified(relation), new_id
    );
    EXECUTE format(
        'CREATE TRIGGER %I AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'
        ' FOR EACH STATEMENT EXECUTE FUNCTION nv_embed.embed_written_rows(%L)',
        format('nv_embed_%s_update', new_id), nv_embed.qualified(relation), new_id
    );
    RETURN new_id;
END
$$;

COMMENT ON FUNCTION nv_embed.declare_embedding(regclass, text, name, int, text, text, text, text)
    IS 'Writes a declaration: the catalog''s rows, the target column and the triggers.';

-- Filling runs the user's own triggers, hence no SET search_path in the two that do it: see fill.sql.

CREATE OR REPLACE FUNCTION nv_embed.auto_embed(
    relation regclass, source text, target name DEFAULT 'embedding', dim int DEFAULT NULL, model text DEFAULT NULL, mode text DEFAULT 'sync',
    storage text DEFAULT 'halfvec', chunk_tokens int DEFAULT NULL, chunk_overlap int DEFAULT 0, truncate text DEFAULT 'NONE'
) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    id bigint;
BEGIN
    PERFORM nv_embed.check_options(mode, storage, chunk_tokens, chunk_overlap, truncate);
    id := nv_embed.declare_embedding(relation, source, target, dim, model, mode, storage, truncate);
    IF nv_embed.has_few_to_fill(relation, target) THEN
        PERFORM nv_embed.refresh(relation, target);
    END IF;
    RETURN id;
END
$$;

COMMENT ON FUNCTION nv_embed.auto_embed(regclass, text, name, int, text, text, text, int, int, text)
    IS 'Declares that a column holds the vectors of a template over the others, and keeps it so; returns the embedding''s id.';

CREATE OR REPLACE FUNCTION nv_embed.refresh(relation regclass, target name DEFAULT 'embedding') RETURNS bigint
LANGUAGE plpgsql
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
AS $$
DECLARE
    id CONSTANT bigint := (nv_embed.find_embedding(relation, target)).id;
    pages pg_catalog.refcursor;
BEGIN
    OPEN pages FOR EXECUTE nv_embed.pages_sql(id, 'refresh');
    RETURN (SELECT f.embedded FROM nv_embed.fill(id, pages) AS f);
END
$$;

COMMENT ON FUNCTION nv_embed.refresh(regclass, name) IS 'Embeds every row that lacks a vector and has content; returns how many.';

CREATE OR REPLACE FUNCTION nv_embed.find_embedding(relation regclass, target name) RETURNS nv_embed.embedding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e nv_embed.embedding;
BEGIN
    SELECT * INTO e FROM nv_embed.embedding AS s WHERE s.relation = find_embedding.relation AND s.target = find_embedding.target;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'column % of % is not auto-embedded', coalesce(quote_ident(target), 'null'), coalesce(nv_embed.qualified(relation), 'null')
            USING ERRCODE = '42704', HINT = coalesce(
                (SELECT format('its embedded columns are: %s', string_agg(quote_ident(s.target), ', ' ORDER BY s.target))
                 FROM nv_embed.embedding AS s WHERE s.relation = find_embedding.relation),
                'declare it with nv_embed.auto_embed()');
    END IF;
    RETURN e;
END
$$;

COMMENT ON FUNCTION nv_embed.find_embedding(regclass, name) IS 'The declaration for a table''s target column, or an error that names the ones there are.';

CREATE OR REPLACE FUNCTION nv_embed.drop_auto_embed(relation regclass, target name DEFAULT 'embedding', keep_vectors boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
    event text;
BEGIN
    IF NOT nv_embed.owns(relation) THEN
        RAISE EXCEPTION 'must be owner of table %', nv_embed.qualified(relation) USING ERRCODE = '42501';
    END IF;
    FOREACH event IN ARRAY ARRAY['insert', 'update'] LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', format('nv_embed_%s_%s', e.id, event), nv_embed.qualified(relation));
    END LOOP;
    DELETE FROM nv_embed.embedding AS s WHERE s.id = e.id;
    IF NOT keep_vectors THEN
        EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', nv_embed.qualified(relation), target);
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.drop_auto_embed(regclass, name, boolean)
    IS 'Ends a declaration; the column stays with its vectors unless keep_vectors is false.';
-- fill: give rows their vectors.
--
-- A cursor hands out the rows that await a vector, by pages of a thousand; each page is embedded in one call and written in one statement by primary
-- key. Both statements are built as text, because tables and columns are the user's, and run with the rights and the search_path of whoever wrote the
-- rows, since their table may have triggers of its own. Hence the division here: what builds a statement pins its search_path; what runs one does not,
-- and names everything with its schema.
--
-- Old and new rows of an UPDATE are paired by their order in the transition tables, not by key: the key itself may have changed.
--
-- A vector is written only where the row still reads as it was embedded. A row that its own triggers rewrote, or that somebody else changed while
-- `refresh` waited for the sidecar, is left to the statement that changed it.
--
-- Type names are written with their schema too: for types, a session's own pg_temp comes before everything else.

CREATE OR REPLACE FUNCTION nv_embed.qualified(relation regclass) RETURNS text
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation);

COMMENT ON FUNCTION nv_embed.qualified(regclass) IS 'A table''s name with its schema, quoted as needed.';

CREATE OR REPLACE FUNCTION nv_embed.type_sql(storage text, dim int) RETURNS text
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT format('%I.%I(%s)', n.nspname, storage, dim)
    FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'vector'
);

COMMENT ON FUNCTION nv_embed.type_sql(text, int) IS 'A column type of pgvector with its schema, for example public.halfvec(384).';

CREATE OR REPLACE FUNCTION nv_embed.check_may_fill(relation regclass, target name) RETURNS void
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = target AND NOT a.attisdropped) THEN
        RAISE EXCEPTION 'column % of % holds its vectors and is gone', quote_ident(target), nv_embed.qualified(relation)
            USING ERRCODE = '42703', HINT = format('call nv_embed.drop_auto_embed(%L, %L), or bring the column back', nv_embed.qualified(relation), target);
    END IF;
    IF NOT has_column_privilege(relation, target, 'UPDATE') OR NOT has_any_column_privilege(relation, 'SELECT') THEN
        RAISE EXCEPTION 'role % may not write the vectors of %', quote_ident(current_user), nv_embed.qualified(relation)
            USING ERRCODE = '42501', HINT = format('GRANT SELECT, UPDATE (%I) ON %s TO %I', target, nv_embed.qualified(relation), current_user);
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_may_fill(regclass, name) IS 'Raises an error that says what to grant, before a model is asked.';

-- candidates: from where the rows come, and which of them await a vector.
CREATE OR REPLACE FUNCTION nv_embed.candidates_sql(e nv_embed.embedding, target name, event text) RETURNS text
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN CASE event
    WHEN 'insert' THEN
        format('new_rows AS n WHERE n.%I IS NULL AND %s', target, nv_embed.has_content(e.source, 'n'))
    WHEN 'refresh' THEN
        format('%s AS n WHERE n.%I IS NULL AND %s', nv_embed.qualified(e.relation), target, nv_embed.has_content(e.source, 'n'))
    WHEN 'update' THEN
        -- A target that changed in the same statement is a vector that its writer brought along. One that became NULL is not: an upsert of whole rows
        -- writes NULL there, and a row with content is never without its vector.
        format(
            '(SELECT pg_catalog.row_number() OVER () AS nv_embed_place, * FROM new_rows) AS n'
            ' JOIN (SELECT pg_catalog.row_number() OVER () AS nv_embed_place, * FROM old_rows) AS o'
            ' ON n.nv_embed_place OPERATOR(pg_catalog.=) o.nv_embed_place'
            ' WHERE %1$s OPERATOR(pg_catalog.<>) %2$s AND pg_catalog.record_image_eq(ROW(n.%3$I), ROW(o.%3$I))'
            ' OR n.%3$I IS NULL AND o.%3$I IS NOT NULL AND %4$s',
            nv_embed.rendered(e.source, 'n'), nv_embed.rendered(e.source, 'o'), target, nv_embed.has_content(e.source, 'n')
        )
END;

COMMENT ON FUNCTION nv_embed.candidates_sql(nv_embed.embedding, name, text)
    IS 'FROM and WHERE of the rows, as n, that an insert, an update or a refresh leaves to be embedded.';

CREATE OR REPLACE FUNCTION nv_embed.pages_sql(id bigint, event text) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e nv_embed.embedding;
    g nv_embed.generation;
    keys text;
BEGIN
    SELECT * INTO STRICT e FROM nv_embed.embedding AS s WHERE s.id = pages_sql.id;
    SELECT * INTO STRICT g FROM nv_embed.generation AS s WHERE s.embedding = pages_sql.id AND s.state = 'live';
    PERFORM nv_embed.check_may_fill(e.relation, g.target);
    SELECT string_agg(format('n.%I::pg_catalog.text', k.column_name), ', ' ORDER BY k.place) INTO keys FROM nv_embed.key_columns(e.relation) AS k;
    -- Keys travel as text, so that one shape of page serves a key of any types.
    RETURN format(
        'SELECT pg_catalog.array_agg(keys) AS keys, pg_catalog.array_agg(text) AS texts,'
        ' pg_catalog.array_agg(CASE WHEN has_content THEN text END) AS contents'
        ' FROM (SELECT ARRAY[%s] AS keys, %s AS text, %s AS has_content,'
        ' (pg_catalog.row_number() OVER () OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog./) 1000 AS page FROM %s) AS candidate GROUP BY page',
        keys, nv_embed.rendered(e.source, 'n'), nv_embed.has_content(e.source, 'n'), nv_embed.candidates_sql(e, g.target, event)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.pages_sql(bigint, text)
    IS 'A query: pages of rows to embed, with their keys, the texts they read, and those texts again but NULL for a row without content.';

CREATE OR REPLACE FUNCTION nv_embed.write_sql(id bigint) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e nv_embed.embedding;
    g nv_embed.generation;
    matched text;
BEGIN
    SELECT * INTO STRICT e FROM nv_embed.embedding AS s WHERE s.id = write_sql.id;
    SELECT * INTO STRICT g FROM nv_embed.generation AS s WHERE s.embedding = write_sql.id AND s.state = 'live';
    SELECT string_agg(format('t.%I %s ($1)[f.place][%s]::%s', k.column_name, k.equals, k.place, k.type), ' AND ' ORDER BY k.place)
    INTO matched
    FROM nv_embed.key_columns(e.relation) AS k;
    -- LIMIT tells the planner how many rows there are, so that it finds a few by the primary key's index and does not read the table for them. Arrays are
    -- unnested in the select list, which streams; in FROM they would be written to a temporary file first.
    RETURN format(
        'UPDATE %s AS t SET %I = f.vector::%s'
        ' FROM (SELECT pg_catalog.unnest($2) AS text, pg_catalog.unnest($3) AS vector, pg_catalog.generate_series(1, $4) AS place LIMIT $4) AS f'
        ' WHERE %s AND %s OPERATOR(pg_catalog.=) f.text',
        nv_embed.qualified(e.relation), g.target, nv_embed.type_sql(g.storage, g.dim), matched, nv_embed.rendered(e.source, 't')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.write_sql(bigint) IS 'A statement: write a page''s vectors; its parameters are keys, texts, vectors and their number.';

CREATE OR REPLACE FUNCTION nv_embed.fill(id bigint, pages refcursor, OUT awaiting bigint, OUT embedded bigint)
LANGUAGE plpgsql STRICT
AS $$
DECLARE
    write CONSTANT pg_catalog.text := nv_embed.write_sql(id);
    e nv_embed.embedding;
    g nv_embed.generation;
    page record;
    written bigint;
BEGIN
    SELECT * INTO STRICT e FROM nv_embed.embedding AS s WHERE s.id OPERATOR(pg_catalog.=) fill.id;
    SELECT * INTO STRICT g FROM nv_embed.generation AS s WHERE s.embedding OPERATOR(pg_catalog.=) fill.id AND s.state OPERATOR(pg_catalog.=) 'live';
    awaiting := 0;
    embedded := 0;
    LOOP
        FETCH pages INTO page;
        EXIT WHEN NOT FOUND;
        EXECUTE write
        USING page.keys, page.texts, nv_embed.embed_passages(page.contents, g.dim, g.model, g.revision, e.truncate), pg_catalog.cardinality(page.texts);
        GET DIAGNOSTICS written = ROW_COUNT;
        awaiting := awaiting OPERATOR(pg_catalog.+) pg_catalog.cardinality(page.texts);
        embedded := embedded OPERATOR(pg_catalog.+) written;
    END LOOP;
    CLOSE pages;
END
$$;

COMMENT ON FUNCTION nv_embed.fill(bigint, refcursor) IS 'Embeds the rows that a cursor over pages_sql hands out; how many awaited a vector, and how many got one.';

CREATE OR REPLACE FUNCTION nv_embed.refuse_hidden_rows(relation regclass, hidden bigint) RETURNS void
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'row-level security hides % of the rows just written to % from role %', hidden, nv_embed.qualified(relation), quote_ident(current_user)
        USING ERRCODE = '42501',
              DETAIL = 'Their vectors cannot be written, and a row is never left without its vector.',
              HINT = 'let the policies of this role read and update the rows that it may write';
END
$$;

COMMENT ON FUNCTION nv_embed.refuse_hidden_rows(regclass, bigint) IS 'Raises the error for rows that their writer may not see.';

-- Keys and texts must not depend on how a session likes its numbers and dates.
CREATE OR REPLACE FUNCTION nv_embed.embed_written_rows() RETURNS trigger
LANGUAGE plpgsql
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
AS $$
DECLARE
    id CONSTANT bigint := TG_ARGV[0];
    pages pg_catalog.refcursor;
    filled record;
BEGIN
    IF EXISTS (SELECT FROM new_rows) THEN
        -- Opened here, where the transition tables are.
        OPEN pages FOR EXECUTE nv_embed.pages_sql(id, pg_catalog.lower(TG_OP));
        SELECT f.awaiting, f.embedded INTO filled FROM nv_embed.fill(id, pages) AS f;
        IF filled.embedded OPERATOR(pg_catalog.<) filled.awaiting AND pg_catalog.row_security_active(TG_RELID) THEN
            PERFORM nv_embed.refuse_hidden_rows(TG_RELID, filled.awaiting OPERATOR(pg_catalog.-) filled.embedded);
        END IF;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION nv_embed.embed_written_rows()
    IS 'Statement trigger: embeds the rows that an INSERT or COPY wrote without a vector, and those whose text an UPDATE changed.';
-- search: rows by meaning.
--
-- Model and column are read from the catalog in the snapshot that the search itself runs in. The statement is built with a pinned search_path and run
-- without one, with the caller's rights: `filter` can do what its caller could do in a query of their own, and no more.
--
-- An approximate index is scanned on until k rows have passed the filter, instead of ending after its first candidates.

CREATE OR REPLACE FUNCTION nv_embed.live_generation(relation regclass, target name) RETURNS nv_embed.generation
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
    g nv_embed.generation;
BEGIN
    SELECT * INTO STRICT g FROM nv_embed.generation AS s WHERE s.embedding = e.id AND s.state = 'live';
    RETURN g;
END
$$;

COMMENT ON FUNCTION nv_embed.live_generation(regclass, name) IS 'The generation that answers searches.';

CREATE OR REPLACE FUNCTION nv_embed.row_relation(row_type regtype) RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_relation regclass;
BEGIN
    SELECT t.typrelid INTO found_relation FROM pg_type AS t WHERE t.oid = row_type AND t.typrelid <> 0;
    IF found_relation IS NULL THEN
        RAISE EXCEPTION 'nv_search needs a row of a table, not a %', row_type
            USING ERRCODE = '22023', HINT = 'write NULL::docs for table docs';
    END IF;
    RETURN found_relation;
END
$$;

COMMENT ON FUNCTION nv_embed.row_relation(regtype) IS 'The table whose rows have this type.';

CREATE OR REPLACE FUNCTION nv_embed.check_dim(g nv_embed.generation, dim int) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF dim <> g.dim THEN
        RAISE EXCEPTION 'column % holds % dimensions, not %', quote_ident(g.target), g.dim, dim
            USING ERRCODE = '0A000', HINT = 'leave dim out: searching by a prefix of the stored vector is not available in this version';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_dim(nv_embed.generation, int) IS 'Raises an error for a dim that cannot be searched by.';

CREATE OR REPLACE FUNCTION @extschema@.nv_embed_query(query text, relation regclass, dim int DEFAULT NULL, target name DEFAULT 'embedding') RETURNS vector
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 100000
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
BEGIN
    RETURN nv_embed.embed_question(query, coalesce(dim, g.dim), g.model, g.revision);
END
$$;

COMMENT ON FUNCTION @extschema@.nv_embed_query(text, regclass, int, name)
    IS 'The vector of a question by the model that made this embedding''s live vectors.';

CREATE OR REPLACE FUNCTION nv_embed.search_sql(relation regclass, target name, k int, dim int, filter text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
    distance text;
BEGIN
    IF k < 0 IS NOT FALSE THEN
        RAISE EXCEPTION 'k is %', coalesce(k::text, 'null') USING ERRCODE = '22023', HINT = 'k is the number of rows wanted, 0 or more';
    END IF;
    PERFORM nv_embed.check_dim(g, dim);
    distance := format(
        'nv_embed_row.%I OPERATOR(%s.<=>) $1::%s', g.target,
        (SELECT quote_ident(n.nspname) FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector'),
        nv_embed.type_sql(g.storage, g.dim)
    );
    -- No table has a column of the alias's name, which would stand for it. The line ends keep a comment inside the filter from swallowing what follows it.
    RETURN format(
        E'SELECT nv_embed_row, 1 OPERATOR(pg_catalog.-) (%1$s) FROM %2$s AS nv_embed_row WHERE nv_embed_row.%3$I IS NOT NULL%4$s ORDER BY %1$s LIMIT %5$s',
        distance, nv_embed.qualified(relation), g.target, E' AND (\n' || filter || E'\n)', k
    );
END
$$;

COMMENT ON FUNCTION nv_embed.search_sql(regclass, name, int, int, text) IS 'The statement of nv_search; its $1 is the query''s vector.';

CREATE OR REPLACE FUNCTION @extschema@.nv_search(
    relation anyelement, query vector, k int DEFAULT 10, target name DEFAULT 'embedding', dim int DEFAULT NULL, rescore boolean DEFAULT true,
    oversample real DEFAULT 4, filter text DEFAULT NULL, OUT hit anyelement, OUT score double precision
) RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 10000 ROWS 10
SET hnsw.iterative_scan = strict_order
SET ivfflat.iterative_scan = relaxed_order
AS $$
BEGIN
    RETURN QUERY EXECUTE nv_embed.search_sql(nv_embed.row_relation(pg_catalog.pg_typeof(relation)), target, k, dim, filter) USING query;
END
$$;

COMMENT ON FUNCTION @extschema@.nv_search(anyelement, vector, int, name, int, boolean, real, text)
    IS 'The k rows whose vectors are nearest to this one, best first; score is the cosine similarity.';

CREATE OR REPLACE FUNCTION @extschema@.nv_search(
    relation anyelement, query text, k int DEFAULT 10, target name DEFAULT 'embedding', dim int DEFAULT NULL, rescore boolean DEFAULT true,
    oversample real DEFAULT 4, filter text DEFAULT NULL, OUT hit anyelement, OUT score double precision
) RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 100000 ROWS 10
SET hnsw.iterative_scan = strict_order
SET ivfflat.iterative_scan = relaxed_order
AS $$
BEGIN
    RETURN QUERY EXECUTE nv_embed.search_sql(nv_embed.row_relation(pg_catalog.pg_typeof(relation)), target, k, dim, filter)
        USING @extschema@.nv_embed_query(query, nv_embed.row_relation(pg_catalog.pg_typeof(relation)), dim, target);
END
$$;

COMMENT ON FUNCTION @extschema@.nv_search(anyelement, text, int, name, int, boolean, real, text)
    IS 'The k rows whose meaning is nearest to this question, best first; score is the cosine similarity.';
-- privileges: what the public must not have.
--
-- Whoever is granted anything here, by default privileges that were in force when the extension was made, loses it again.

DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT 'TABLE nv_embed.settings' AS object, a.grantee, c.relowner AS owner
        FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))) AS a
        WHERE c.oid = 'nv_embed.settings'::regclass
        UNION
        SELECT 'FUNCTION ' || p.oid::regprocedure, a.grantee, p.proowner
        FROM pg_catalog.pg_proc AS p, pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) AS a
        WHERE p.oid IN ('nv_embed.configure(text, real)'::regprocedure, 'nv_embed.start_session()'::regprocedure)
    LOOP
        IF granted.grantee <> granted.owner THEN
            EXECUTE pg_catalog.format(
                'REVOKE ALL ON %s FROM %s', granted.object,
                CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(granted.grantee)) END
            );
        END IF;
    END LOOP;
END
$$;

GRANT EXECUTE ON FUNCTION nv_embed.configure(text, real) TO nv_embed_admin;
