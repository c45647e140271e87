-- question: rows by meaning, asked in words. The model that made the live vectors embeds the question, in the snapshot that the search itself runs in.

CREATE OR REPLACE FUNCTION @extschema@.nv_embed_query(query text, relation regclass, dim int DEFAULT NULL, target name DEFAULT 'embedding') RETURNS vector
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 100000
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := nv_embed.named_generation(relation, target);
BEGIN
    RETURN nv_embed.embed_question(query, coalesce(dim, g.dim), g.model, g.revision);
END
$$;

COMMENT ON FUNCTION @extschema@.nv_embed_query(text, regclass, int, name)
    IS 'The vector of a question by the model that made this embedding''s live vectors, to be compared with those of the column of this name.';

CREATE OR REPLACE FUNCTION nv_embed.embed_searched(query text, relation regclass, target name, is_by_name boolean DEFAULT false) RETURNS vector
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 100000
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := CASE
        WHEN is_by_name THEN nv_embed.named_generation(relation, target) ELSE nv_embed.live_generation(relation, target)
    END;
BEGIN
    RETURN nv_embed.embed_question(query, g.dim, g.model, g.revision);
END
$$;

COMMENT ON FUNCTION nv_embed.embed_searched(text, regclass, name, boolean)
    IS 'The vector of a question for nv_search, or to be compared with the column of this name; an error in the library install.';

CREATE OR REPLACE FUNCTION @extschema@.nv_search(
    relation anyelement, query text, k int DEFAULT 10, target name DEFAULT 'embedding', dim int DEFAULT NULL, rescore boolean DEFAULT true,
    oversample real DEFAULT 4, filter text DEFAULT NULL, OUT hit anyelement, OUT score double precision, OUT seq int, OUT start_char int,
    OUT end_char int, OUT content text
) RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 100000 ROWS 10
AS $$
BEGIN
    RETURN QUERY
    SELECT s.*
    FROM @extschema@.nv_search(
        relation, nv_embed.embed_searched(query, nv_embed.row_relation(pg_catalog.pg_typeof(relation)), target), k, target, dim, rescore, oversample,
        filter
    ) AS s;
END
$$;

COMMENT ON FUNCTION @extschema@.nv_search(anyelement, text, int, name, int, boolean, real, text)
    IS 'The k rows whose meaning is nearest to this question, best first; score is the cosine similarity. Of a table with chunks, each row once, with its best piece.';
