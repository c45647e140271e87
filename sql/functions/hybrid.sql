-- hybrid: rows by meaning and by words, in one list.
--
-- Each way ranks its own candidates, and a row's score is the sum of 1 / (rrf_k + rank) over the lists that it is in: reciprocal rank fusion, which needs no
-- scale that cosines and statistics of words would share (Cormack, Clarke and Büttcher, Reciprocal Rank Fusion outperforms Condorcet, 2009).
--
-- As in `search.sql`, filter and document are the caller's own SQL: they see the user's table alone, and run with the caller's rights.

CREATE OR REPLACE FUNCTION nv_embed.has_own_cast(relation regclass, column_name name) RETURNS boolean
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Of initdb's: none but a superuser can add casts to these.
    built_in CONSTANT oid := 16384;
    type_oid oid := (SELECT a.atttypid FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = has_own_cast.column_name AND a.attnum > 0);
    base oid;
BEGIN
    LOOP
        SELECT t.typbasetype INTO base FROM pg_type AS t WHERE t.oid = type_oid;
        EXIT WHEN coalesce(base, 0) = 0;
        type_oid := base;
    END LOOP;
    RETURN type_oid >= built_in;
END
$$;

COMMENT ON FUNCTION nv_embed.has_own_cast(regclass, name) IS 'Whether somebody may have made a cast of a column''s type, or of what is under its domain.';

-- Not by concat(), as vectors' texts are: no index can hold what is not immutable. But a cast of a type of the owner's may be a function of the owner's.
CREATE OR REPLACE FUNCTION nv_embed.document_sql(relation regclass, source text, config regconfig) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT format(
            'pg_catalog.to_tsvector(%L::pg_catalog.regconfig, %s)', config,
            string_agg(
                concat_ws(
                    ' OPERATOR(pg_catalog.||) ', quote_literal(nullif(p.literal, '')) || '::pg_catalog.text',
                    format(
                        CASE WHEN nv_embed.has_own_cast(relation, p.column_name) THEN 'pg_catalog.concat(%s.%I)' ELSE 'COALESCE(%s.%I::pg_catalog.text, ''''::pg_catalog.text)' END,
                        (SELECT quote_ident(c.relname) FROM pg_class AS c WHERE c.oid = relation), p.column_name
                    )
                ),
                ' OPERATOR(pg_catalog.||) ' ORDER BY p.place
            )
        )
        FROM nv_embed.parse_template(source) AS p WHERE p.column_name IS NOT NULL
    );
END
$$;

COMMENT ON FUNCTION nv_embed.document_sql(regclass, text, regconfig) IS 'An SQL expression: the words of a row''s source columns.';

CREATE OR REPLACE FUNCTION nv_embed.text_config(relation regclass, source text) RETURNS regconfig
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN coalesce(
        (
            SELECT replace(substring(pg_get_indexdef(i.indexrelid, 1, false) FROM '^to_tsvector\(''((?:[^'']|'''')+)''::regconfig'), '''''', '''')
            FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS m ON m.oid = c.relam
            WHERE i.indrelid = relation AND i.indisvalid AND m.amname = 'gin' AND pg_get_indexdef(i.indexrelid, 1, false) LIKE 'to\_tsvector(''%'
                AND ARRAY(
                    SELECT DISTINCT a.attname FROM pg_depend AS d JOIN pg_attribute AS a ON a.attrelid = relation AND a.attnum = d.refobjsubid
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refobjid = relation AND d.refobjsubid > 0 ORDER BY 1
                ) = ARRAY(SELECT DISTINCT p.column_name FROM nv_embed.parse_template(source) AS p WHERE p.column_name IS NOT NULL ORDER BY 1)
            ORDER BY i.indexrelid
            LIMIT 1
        )::regconfig,
        pg_catalog.get_current_ts_config()
    );
END
$$;

COMMENT ON FUNCTION nv_embed.text_config(regclass, text) IS 'The text search configuration that a table''s source columns are indexed by, else the session''s.';

CREATE OR REPLACE FUNCTION nv_embed.any_word(config regconfig, query text) RETURNS tsquery
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    quoted CONSTANT text := (
        SELECT string_agg('''' || replace(replace(t.lexeme, '\', '\\'), '''', '''''') || '''', ' | ') FROM unnest(to_tsvector(config, query)) AS t
    );
BEGIN
    RETURN quoted::tsquery;
END
$$;

COMMENT ON FUNCTION nv_embed.any_word(regconfig, text) IS 'A text search query: any of these words; NULL where there are none to search for.';

CREATE OR REPLACE FUNCTION nv_embed.matches_sql(relation regclass, document text, filter text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format(
        E'FROM %s WHERE (\n%s\n) OPERATOR(pg_catalog.@@) $1%s', nv_embed.qualified(relation), document, coalesce(E' AND (\n' || filter || E'\n)', '')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.matches_sql(regclass, text, text) IS 'A part of a statement: the rows that match the text search query $1 and pass the filter.';

-- Ranks by frequency, over the logarithm of the length: of what Postgres offers, this found most on the test collections (`docs/decisions.md`).
CREATE OR REPLACE FUNCTION nv_embed.hybrid_sql(t record, target name, document text, k int, depth bigint, rrf_k int, filter text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format(
        $sql$
            SELECT f.hit, f.score, f.dense_rank::pg_catalog.int4, f.text_rank::pg_catalog.int4, f.seq, f.start_char, f.end_char, f.content
            FROM (
                SELECT coalesce(d.hit, m.hit) AS hit, d.rank AS dense_rank, m.rank AS text_rank, d.seq, d.start_char, d.end_char, d.content,
                    coalesce(1::pg_catalog.float8 OPERATOR(pg_catalog./) (%10$s::pg_catalog.float8 OPERATOR(pg_catalog.+) d.rank), 0)
                    OPERATOR(pg_catalog.+) coalesce(1::pg_catalog.float8 OPERATOR(pg_catalog./) (%10$s::pg_catalog.float8 OPERATOR(pg_catalog.+) m.rank), 0) AS score
                FROM %14$s(NULL::%1$s, $2, %2$s, %3$L, $3, $4, $5, %4$L) WITH ORDINALITY AS d (hit, score, seq, start_char, end_char, content, rank)
                FULL JOIN (
                    SELECT ROW(%5$s)::%1$s AS hit, pg_catalog.row_number() OVER (ORDER BY nv_embed_rank DESC, %6$s) AS rank
                    FROM (
                        SELECT %7$s.*, pg_catalog.ts_rank((%8$s), $1, 1) AS nv_embed_rank
                        %9$s
                        ORDER BY nv_embed_rank DESC, %6$s
                        LIMIT %2$s
                    ) AS nv_embed_near
                ) AS m ON %11$s
            ) AS f
            ORDER BY f.score DESC, %12$s
            LIMIT %13$s
        $sql$,
        t.qualified, depth, target, filter, t.columns, t.key, t.own, E'\n' || document || E'\n', nv_embed.matches_sql(t.relation, document, filter), rrf_k,
        nv_embed.same_key_sql(t.relation, '(d.hit)', '(m.hit)'),
        (SELECT string_agg(format('(f.hit).%I', c.column_name), ', ' ORDER BY c.place) FROM nv_embed.key_columns(t.relation) AS c), k, '@extschema@.nv_search'
    );
END
$$;

COMMENT ON FUNCTION nv_embed.hybrid_sql(record, name, text, int, bigint, int, text)
    IS 'The statement of nv_hybrid_search; its $1 is the text search query, $2 the query''s vector, $3 to $5 are dim, rescore and oversample.';

CREATE OR REPLACE FUNCTION nv_embed.check_hybrid(query text, rrf_k int) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF query IS NULL THEN
        RAISE EXCEPTION 'query is null' USING ERRCODE = '22004', HINT = 'a hybrid search needs words; nv_search() takes a vector alone';
    ELSIF rrf_k >= 0 IS NOT TRUE THEN
        RAISE EXCEPTION 'rrf_k is %', coalesce(rrf_k::text, 'null')
            USING ERRCODE = '22023', HINT = 'rrf_k is 0 or more; the larger it is, the less do the first places of a list count. 60 is customary';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_hybrid(text, int) IS 'Raises an error for a hybrid search that makes no sense.';

-- A question has words that its answer lacks, so any of them will do. But to rank all rows that have any takes long, and rows that have all come first anyway:
-- where there are enough of these, they are the ones.
CREATE OR REPLACE FUNCTION @extschema@.nv_hybrid_search(
    relation anyelement, query text, k int DEFAULT 10, target name DEFAULT 'embedding', filter text DEFAULT NULL, rrf_k int DEFAULT 60,
    config regconfig DEFAULT NULL, document text DEFAULT NULL, dim int DEFAULT NULL, rescore boolean DEFAULT true, oversample real DEFAULT 4,
    embedding vector DEFAULT NULL, OUT hit anyelement, OUT score double precision, OUT dense_rank int, OUT text_rank int, OUT seq int,
    OUT start_char int, OUT end_char int, OUT content text
) RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 100000 ROWS 10
SET jit = off
AS $$
DECLARE
    searched CONSTANT pg_catalog.regclass := nv_embed.row_relation(pg_catalog.pg_typeof(relation));
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(searched, target);
    language CONSTANT pg_catalog.regconfig := coalesce(config, nv_embed.text_config(searched, e.source));
    words CONSTANT pg_catalog.text := coalesce(document, nv_embed.document_sql(searched, e.source, language));
    depth CONSTANT bigint := least(nv_embed.candidates(k, oversample), 2147483647);
    asked pg_catalog.tsquery := nv_embed.any_word(language, query);
    matches bigint;
BEGIN
    PERFORM nv_embed.check_hybrid(query, rrf_k);
    PERFORM nv_embed.plan_search(pg_catalog.pg_typeof(relation), target, embedding, dim, k, rescore, oversample, filter);
    IF asked IS NOT NULL THEN
        EXECUTE pg_catalog.format('SELECT pg_catalog.count(*) FROM (SELECT %s LIMIT %s) AS s', nv_embed.matches_sql(searched, words, filter), depth)
        INTO matches USING pg_catalog.plainto_tsquery(language, query);
    END IF;
    IF matches OPERATOR(pg_catalog.>=) depth THEN
        asked := pg_catalog.plainto_tsquery(language, query);
    END IF;
    RETURN QUERY EXECUTE nv_embed.hybrid_sql(
        nv_embed.find_searched(pg_catalog.pg_typeof(relation), target, dim, rescore), target, words, k, depth, rrf_k, filter
    )
    USING asked, coalesce(embedding, nv_embed.embed_searched(query, searched, target)), dim, rescore, oversample;
END
$$;

COMMENT ON FUNCTION @extschema@.nv_hybrid_search(anyelement, text, int, name, text, int, regconfig, text, int, boolean, real, vector)
    IS 'The k rows that are found best by meaning and by words, with their ranks in both lists; score is that of reciprocal rank fusion.';

CREATE OR REPLACE FUNCTION nv_embed.create_text_index_sql(
    relation regclass, target name DEFAULT 'embedding', config regconfig DEFAULT pg_catalog.get_current_ts_config(), concurrently boolean DEFAULT true
) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
    is_split CONSTANT boolean := EXISTS (SELECT FROM pg_class AS c WHERE c.oid = relation AND c.relkind = 'p');
BEGIN
    IF config IS NULL THEN
        RAISE EXCEPTION 'config is null' USING ERRCODE = '22004', HINT = 'name a text search configuration, for example english or simple';
    END IF;
    RETURN format(
        'CREATE INDEX%s ON %s USING gin ((%s))', CASE WHEN "concurrently" AND NOT is_split THEN ' CONCURRENTLY' ELSE '' END, nv_embed.qualified(relation),
        nv_embed.document_sql(relation, e.source, config)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.create_text_index_sql(regclass, name, regconfig, boolean)
    IS 'The statement that makes the full text index which nv_hybrid_search uses; for \gexec.';
