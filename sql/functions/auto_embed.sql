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
    SELECT * INTO c FROM pg_class AS s WHERE s.oid = relation;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no relation %', relation::oid USING ERRCODE = '42P01', HINT = 'name a table';
    END IF;
    IF c.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '% is not a table', nv_embed.qualified(relation)
            USING ERRCODE = '42809', HINT = 'declare the table that a view or a foreign table reads';
    END IF;
    -- A statement fires the triggers of the table that it names, and of no other.
    IF c.relispartition THEN
        RAISE EXCEPTION '% is a partition', nv_embed.qualified(relation)
            USING ERRCODE = '0A000', DETAIL = 'What is written through its parent would not be seen.',
                HINT = format('declare %s', nv_embed.qualified(pg_partition_root(relation)));
    END IF;
    IF c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = relation) THEN
        RAISE EXCEPTION 'other tables inherit from %', nv_embed.qualified(relation)
            USING ERRCODE = '0A000', DETAIL = 'What is written to them would not be seen.', HINT = 'declare a partitioned table, or one without children';
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
        IF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped) THEN
            RAISE EXCEPTION 'table % has no column %', nv_embed.qualified(relation), quote_ident(column_name)
                USING ERRCODE = '42703', HINT = format('the source template is %L; names in it are written as in the catalog, unquoted', source);
        END IF;
    END LOOP;
    PERFORM nv_embed.check_loop(relation, source, target);
END
$$;

COMMENT ON FUNCTION nv_embed.check_source(regclass, text, name) IS 'Raises an error for a source template that this table cannot fill.';

CREATE OR REPLACE FUNCTION nv_embed.source_columns(relation regclass, source text) RETURNS TABLE (column_name name, source_name name)
LANGUAGE plpgsql STABLE STRICT ROWS 5
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A generated column's expression depends on the columns that it reads.
    RETURN QUERY
    SELECT p.column_name, p.column_name FROM nv_embed.parse_template(source) AS p WHERE p.column_name IS NOT NULL
    UNION
    SELECT r.attname, p.column_name
    FROM nv_embed.parse_template(source) AS p
    JOIN pg_attribute AS a ON a.attrelid = relation AND a.attname = p.column_name AND a.attgenerated <> ''
    JOIN pg_attrdef AS x ON x.adrelid = relation AND x.adnum = a.attnum
    JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = x.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid = relation
    JOIN pg_attribute AS r ON r.attrelid = relation AND r.attnum = d.refobjsubid AND r.attnum <> a.attnum;
END
$$;

COMMENT ON FUNCTION nv_embed.source_columns(regclass, text)
    IS 'The columns that a template reads, be it through a generated column, each with the one that the template names.';

-- What is embedded must not depend on a vector: writing the vector would be a new text.
CREATE OR REPLACE FUNCTION nv_embed.check_loop(relation regclass, source text, target name) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    looped record;
BEGIN
    SELECT s.column_name, s.source_name INTO looped
    FROM nv_embed.source_columns(relation, source) AS s
    WHERE s.column_name = target
        OR s.column_name IN (SELECT e.target FROM nv_embed.embedding AS e WHERE e.relation = check_loop.relation AND e.chunk_tokens IS NULL);
    IF FOUND THEN
        RAISE EXCEPTION 'the source column % %', quote_ident(looped.source_name),
            CASE looped.source_name WHEN looped.column_name THEN 'holds vectors' ELSE 'is generated from vectors, those of ' || quote_ident(looped.column_name) END
            USING ERRCODE = '22023', HINT = 'embed columns that no vector goes into, and name another target';
    END IF;
    SELECT e.target, s.source_name INTO looped
    FROM nv_embed.embedding AS e CROSS JOIN LATERAL nv_embed.source_columns(e.relation, e.source) AS s
    WHERE e.relation = check_loop.relation AND s.column_name = check_loop.target;
    IF FOUND THEN
        RAISE EXCEPTION 'column % is what % is embedded from', quote_ident(target), quote_ident(looped.target) USING ERRCODE = '22023', HINT = 'name another target';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_loop(regclass, text, name) IS 'Raises an error where a vector would be part of what is embedded.';

CREATE OR REPLACE FUNCTION nv_embed.add_target(relation regclass, target name, storage text, dim int) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted CONSTANT text := nv_embed.type_sql(storage, dim);
    found_type CONSTANT text := nv_embed.column_type(relation, target);
    has_vectors boolean;
BEGIN
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

CREATE OR REPLACE FUNCTION nv_embed.check_mode(mode text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF mode IN ('sync', 'async', 'off') IS NOT TRUE THEN
        RAISE EXCEPTION 'mode % is unknown', coalesce(quote_literal(mode), 'null')
            USING ERRCODE = '22023', HINT = 'mode is sync (in the statement itself), async (by a worker) or off';
    END IF;
    IF mode = 'sync' THEN
        PERFORM nv_embed.check_sync();
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_mode(text) IS 'Raises an error for a mode that there is not.';

CREATE OR REPLACE FUNCTION nv_embed.check_truncate(truncate text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF truncate IN ('NONE', 'START', 'END') IS NOT TRUE THEN
        RAISE EXCEPTION 'truncate % is unknown', coalesce(quote_literal(truncate), 'null') USING ERRCODE = '22023', HINT = 'truncate is one of NONE, START, END';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_truncate(text) IS 'Raises an error for a way to truncate that there is not.';

CREATE OR REPLACE FUNCTION nv_embed.check_options(
    mode text, storage text, chunk_tokens int, chunk_overlap int, truncate text
) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF chunk_tokens < 1 OR chunk_overlap < 0 OR chunk_overlap IS NULL OR chunk_overlap >= coalesce(chunk_tokens, 1) THEN
        RAISE EXCEPTION 'chunk_tokens is % and chunk_overlap %', coalesce(chunk_tokens::text, 'null'), coalesce(chunk_overlap::text, 'null')
            USING ERRCODE = '22023', HINT = 'chunk_tokens is at least 1, and chunk_overlap from 0 to below it; without chunk_tokens rows are embedded whole';
    END IF;
    PERFORM nv_embed.check_mode(mode);
    IF storage IN ('halfvec', 'vector') IS NOT TRUE THEN
        RAISE EXCEPTION 'storage % is unknown', coalesce(quote_literal(storage), 'null') USING ERRCODE = '22023', HINT = 'storage is halfvec or vector';
    END IF;
    PERFORM nv_embed.check_truncate(truncate);
END
$$;

COMMENT ON FUNCTION nv_embed.check_options(text, text, int, int, text) IS 'Raises an error for an option that auto_embed does not know.';

-- One trigger an event, because transition tables allow neither a column list nor several events. The names say in which order they run: first what
-- queues, then what writes vectors, with the rights of whoever wrote the rows.
CREATE OR REPLACE FUNCTION nv_embed.triggers(id bigint, version int) RETURNS TABLE (trigger_name name, definition text)
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT format('nv_embed_%s_%s', id, t.name), format('AFTER %s FOR EACH STATEMENT EXECUTE FUNCTION nv_embed.%I(%L, %L)', t.event, t.function, id, version)
    FROM (
        VALUES
            ('1_queue_insert', 'INSERT ON %s REFERENCING NEW TABLE AS new_rows', 'queue_written_rows'),
            ('1_queue_update', 'UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows', 'queue_written_rows'),
            ('1_queue_delete', 'DELETE ON %s REFERENCING OLD TABLE AS old_rows', 'queue_written_rows'),
            ('1_queue_truncate', 'TRUNCATE ON %s', 'queue_nothing'),
            ('2_fill_insert', 'INSERT ON %s REFERENCING NEW TABLE AS new_rows', 'fill_written_rows'),
            ('2_fill_update', 'UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows', 'fill_written_rows')
    ) AS t (name, event, function);
END;

COMMENT ON FUNCTION nv_embed.triggers(bigint, int) IS 'The triggers of an embedding; in their definitions %s is the table.';

CREATE OR REPLACE FUNCTION nv_embed.set_triggers(e nv_embed.embedding, version int) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    PERFORM nv_embed.drop_triggers(e);
    FOR t IN SELECT * FROM nv_embed.triggers(e.id, version) LOOP
        EXECUTE format('CREATE TRIGGER %I ' || t.definition, t.trigger_name, nv_embed.qualified(e.relation));
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.set_triggers(nv_embed.embedding, int) IS 'Makes an embedding''s triggers, or makes them anew.';

CREATE OR REPLACE FUNCTION nv_embed.drop_triggers(e nv_embed.embedding) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    trigger_name name;
BEGIN
    FOR trigger_name IN
        SELECT t.trigger_name FROM nv_embed.triggers(e.id, 0) AS t JOIN pg_trigger AS g ON g.tgrelid = e.relation AND g.tgname = t.trigger_name
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', trigger_name, nv_embed.qualified(e.relation));
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.drop_triggers(nv_embed.embedding) IS 'Drops an embedding''s triggers.';

-- The oid of a table that was dropped may come back as another table's.
CREATE OR REPLACE FUNCTION nv_embed.forget_dropped() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM nv_embed.forget(g.id)
    FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding
    WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = e.relation);
    DELETE FROM nv_embed.embedding AS e WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = e.relation);
END
$$;

COMMENT ON FUNCTION nv_embed.forget_dropped() IS 'Removes the declarations of tables that were dropped.';

CREATE OR REPLACE FUNCTION nv_embed.declare_embedding(
    relation regclass, source text, target name, dim int, model text, mode text, storage text, chunk_tokens int, chunk_overlap int, truncate text
) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    identity record;
    e nv_embed.embedding;
    g nv_embed.generation;
BEGIN
    PERFORM nv_embed.check_relation(relation);
    PERFORM nv_embed.check_source(relation, source, target);
    PERFORM nv_embed.forget_dropped();
    IF EXISTS (SELECT FROM nv_embed.embedding AS s WHERE s.relation = declare_embedding.relation AND s.target = declare_embedding.target) THEN
        RAISE EXCEPTION 'column % of % is auto-embedded already', quote_ident(target), nv_embed.qualified(relation)
            USING ERRCODE = '42710', HINT = format('call nv_embed.drop_auto_embed(%L, %L) first, or name another target', nv_embed.qualified(relation), target);
    END IF;
    SELECT * INTO STRICT identity FROM nv_embed.identify(dim, model);
    INSERT INTO nv_embed.embedding (relation, target, source, mode, truncate, chunk_tokens, chunk_overlap)
    VALUES (relation, target, source, mode, truncate, chunk_tokens, chunk_overlap)
    RETURNING * INTO e;
    INSERT INTO nv_embed.generation (embedding, model, revision, dim, storage, target, source, chunk_tokens, chunk_overlap, chunks)
    VALUES (
        e.id, identity.model, identity.revision, identity.dim, storage, target, source, chunk_tokens, chunk_overlap,
        CASE WHEN chunk_tokens IS NOT NULL THEN nv_embed.make_chunks(relation, nv_embed.chunks_name(relation, target), target, storage, identity.dim) END
    )
    RETURNING * INTO g;
    IF g.chunks IS NULL THEN
        PERFORM nv_embed.add_target(relation, target, storage, identity.dim);
    ELSE
        PERFORM nv_embed.guard_chunks(e, g);
    END IF;
    PERFORM nv_embed.number_column(e, g);
    PERFORM nv_embed.set_triggers(e, g.version);
    RETURN e.id;
END
$$;

COMMENT ON FUNCTION nv_embed.declare_embedding(regclass, text, name, int, text, text, text, int, int, text)
    IS 'Writes a declaration: the catalog''s rows, the target column or the chunk table, and the triggers.';

-- A declaration holds the lock that adding a column takes, so it looks at no more than a few rows. A larger table is counted and queued by the workers. So is
-- one that is declared in a snapshot of its own: it lacks rows that were committed before the lock.
CREATE OR REPLACE FUNCTION nv_embed.begin_backfill(relation regclass, target name) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    few CONSTANT int := 1000;
    id CONSTANT bigint := (nv_embed.live_generation(relation, target)).id;
    existing bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM (SELECT FROM %s LIMIT %s) AS s', nv_embed.qualified(relation), few + 1) INTO existing;
    IF existing <= few AND current_setting('transaction_isolation') = 'read committed' THEN
        PERFORM nv_embed.count_rows(id);
        RETURN false;
    END IF;
    INSERT INTO nv_embed.backfill (generation) VALUES (id);
    PERFORM nv_embed.wake();
    RAISE NOTICE 'the rows that % already has are left to the workers', nv_embed.qualified(relation)
        USING HINT = format('SELECT nv_embed.refresh(%L, %L) does it here and now', nv_embed.qualified(relation), target);
    RETURN true;
END
$$;

COMMENT ON FUNCTION nv_embed.begin_backfill(regclass, name) IS 'Leaves the rows of a newly declared table to the workers, unless they are few; returns whether it did.';

-- Filling runs the user's own triggers, hence no SET search_path in the two that do it: see fill.sql.

CREATE OR REPLACE FUNCTION nv_embed.auto_embed(
    relation regclass, source text, target name DEFAULT 'embedding', dim int DEFAULT NULL, model text DEFAULT NULL, mode text DEFAULT nv_embed.default_mode(),
    storage text DEFAULT 'halfvec', chunk_tokens int DEFAULT NULL, chunk_overlap int DEFAULT 0, truncate text DEFAULT 'NONE'
) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    id bigint;
BEGIN
    PERFORM nv_embed.check_options(mode, storage, chunk_tokens, chunk_overlap, truncate);
    id := nv_embed.declare_embedding(relation, source, target, dim, model, mode, storage, chunk_tokens, chunk_overlap, truncate);
    IF NOT nv_embed.begin_backfill(relation, target) AND nv_embed.effective_mode(mode) OPERATOR(pg_catalog.<>) 'off' THEN
        PERFORM nv_embed.fill_or_queue(nv_embed.find_embedding(relation, target), nv_embed.live_generation(relation, target));
    END IF;
    RETURN id;
END
$$;

COMMENT ON FUNCTION nv_embed.auto_embed(regclass, text, name, int, text, text, text, int, int, text)
    IS 'Declares that a column holds the vectors of a template over the others, or a chunk table those of its pieces, and keeps it so; returns the embedding''s id.';

CREATE OR REPLACE FUNCTION nv_embed.alter_auto_embed(relation regclass, target name DEFAULT 'embedding', mode text DEFAULT NULL, truncate text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
BEGIN
    IF NOT nv_embed.owns(relation) THEN
        RAISE EXCEPTION 'must be owner of table %', nv_embed.qualified(relation) USING ERRCODE = '42501';
    END IF;
    PERFORM nv_embed.check_mode(coalesce(mode, e.mode));
    PERFORM nv_embed.check_truncate(coalesce(truncate, e.truncate));
    UPDATE nv_embed.embedding AS s
    SET mode = coalesce(alter_auto_embed.mode, s.mode), truncate = coalesce(alter_auto_embed.truncate, s.truncate)
    WHERE s.id = e.id;
END
$$;

COMMENT ON FUNCTION nv_embed.alter_auto_embed(regclass, name, text, text)
    IS 'Changes of a declaration what needs no new vectors: mode and truncate; NULL leaves them. What was queued stays so.';

CREATE OR REPLACE FUNCTION nv_embed.refresh(relation regclass, target name DEFAULT 'embedding') RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    e nv_embed.embedding := nv_embed.find_embedding(relation, target);
    g nv_embed.generation;
    found bigint;
    live_found bigint;
BEGIN
    FOR g IN SELECT * FROM nv_embed.kept_generations(e.id) LOOP
        e := nv_embed.as_declared(e, g);
        found := nv_embed.fill_or_queue(e, g);
        live_found := coalesce(live_found, found);
        IF g.state OPERATOR(pg_catalog.<>) 'live' AND e.mode OPERATOR(pg_catalog.=) 'sync' THEN
            PERFORM nv_embed.embed_queued(g.id);
        END IF;
        -- Rows that came where no trigger saw them, by a partition that was attached for instance, are counted too.
        PERFORM nv_embed.count_rows(g.id);
        -- A transaction that has a snapshot of its own and has begun the backfill itself, too, may not see all rows.
        DELETE FROM nv_embed.backfill AS b
        WHERE b.generation OPERATOR(pg_catalog.=) g.id
            AND (pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.=) 'read committed'
                OR pg_catalog.age(b.xmin) OPERATOR(pg_catalog.>) 0);
    END LOOP;
    RETURN live_found;
END
$$;

COMMENT ON FUNCTION nv_embed.refresh(regclass, name)
    IS 'Queues every row that lacks a vector and has content, or embeds them at once where the mode is sync; returns how many. A re-embedding''s next generation is refreshed too.';

CREATE OR REPLACE FUNCTION nv_embed.fill_or_queue(e nv_embed.embedding, g nv_embed.generation) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    mode CONSTANT pg_catalog.text := CASE WHEN nv_embed.effective_mode(e.mode) OPERATOR(pg_catalog.=) 'off' THEN e.mode ELSE nv_embed.effective_mode(e.mode) END;
    pages pg_catalog.refcursor;
BEGIN
    IF mode OPERATOR(pg_catalog.<>) 'sync' THEN
        RETURN nv_embed.queue_rows(g.id);
    ELSIF g.chunks IS NOT NULL THEN
        PERFORM nv_embed.queue_rows(g.id);
        RETURN nv_embed.embed_queued(g.id);
    END IF;
    OPEN pages FOR EXECUTE nv_embed.pages_sql(g.id, 'refresh');
    RETURN (SELECT f.written FROM nv_embed.fill(g.id, pages, true) AS f);
END
$$;

COMMENT ON FUNCTION nv_embed.fill_or_queue(nv_embed.embedding, nv_embed.generation) IS 'Does for the rows that lack a vector what the mode says; mode off stands for what is declared.';

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
                (SELECT 'its embedded columns are: ' || string_agg(quote_ident(s.target), ', ' ORDER BY s.target)
                 FROM nv_embed.embedding AS s WHERE s.relation = find_embedding.relation),
                'declare it with nv_embed.auto_embed()');
    END IF;
    RETURN e;
END
$$;

COMMENT ON FUNCTION nv_embed.find_embedding(regclass, name) IS 'The declaration for a table''s target column, or an error that names the ones there are.';

CREATE OR REPLACE FUNCTION nv_embed.forget(generation bigint) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM nv_embed.job AS j WHERE j.generation = forget.generation;
    DELETE FROM nv_embed.backfill AS b WHERE b.generation = forget.generation;
    DELETE FROM nv_embed.tally AS t WHERE t.generation = forget.generation;
$$;

COMMENT ON FUNCTION nv_embed.forget(bigint) IS 'Removes the jobs and numbers of a generation that ends.';

CREATE OR REPLACE FUNCTION nv_embed.drop_auto_embed(relation regclass, target name DEFAULT 'embedding', keep_vectors boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
BEGIN
    IF NOT nv_embed.owns(relation) THEN
        RAISE EXCEPTION 'must be owner of table %', nv_embed.qualified(relation) USING ERRCODE = '42501';
    END IF;
    PERFORM nv_embed.lock_briefly(
        ARRAY[relation] || ARRAY(
            SELECT c.oid::regclass FROM nv_embed.generation AS s JOIN pg_class AS c ON c.oid = s.chunks WHERE s.embedding = e.id ORDER BY c.oid
        ),
        '1 min'
    );
    PERFORM nv_embed.drop_triggers(e);
    PERFORM nv_embed.drop_vectors(e, s) FROM nv_embed.generation AS s WHERE s.embedding = e.id AND s.state <> 'live';
    IF g.chunks IN (SELECT c.oid FROM pg_class AS c) THEN
        PERFORM nv_embed.release_chunks(g);
        IF NOT keep_vectors THEN
            EXECUTE format('DROP TABLE %s', nv_embed.qualified(g.chunks));
        END IF;
    END IF;
    PERFORM nv_embed.forget(s.id) FROM nv_embed.generation AS s WHERE s.embedding = e.id;
    DELETE FROM nv_embed.embedding AS s WHERE s.id = e.id;
    IF NOT keep_vectors AND g.chunks IS NULL THEN
        EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', nv_embed.qualified(relation), target);
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.drop_auto_embed(regclass, name, boolean)
    IS 'Ends a declaration; column or chunk table stay with their vectors unless keep_vectors is false.';
