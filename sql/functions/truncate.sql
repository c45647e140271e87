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
