-- A table with its declaration, as far as they are there.

DO $$
DECLARE
    dropped CONSTANT regclass := to_regclass({relation});
BEGIN
    IF EXISTS (SELECT FROM nv_embed.embedding AS e WHERE e.relation = dropped) THEN
        PERFORM nv_embed.drop_auto_embed(dropped, keep_vectors => false);
    END IF;
    IF dropped IS NOT NULL THEN
        EXECUTE format('DROP TABLE %s', dropped);
    END IF;
END
$$
