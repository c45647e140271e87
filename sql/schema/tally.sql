-- tally: how many rows there are, without counting them.
--
-- Every statement that changes a number adds a line with the difference, in its own transaction, so that the sum is exact in every snapshot and no writer
-- waits for another. Lines are folded into one now and then (`nv_embed.fold_tally`).

CREATE TABLE nv_embed.tally (
    generation bigint NOT NULL,
    rows       bigint NOT NULL DEFAULT 0,
    blank      bigint NOT NULL DEFAULT 0,
    vectors    bigint NOT NULL DEFAULT 0,
    jobs       bigint NOT NULL DEFAULT 0,
    stale      bigint NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE nv_embed.tally IS 'Differences whose sums are the numbers of nv_embed.status.';
COMMENT ON COLUMN nv_embed.tally.rows IS 'Of the user''s table.';
COMMENT ON COLUMN nv_embed.tally.blank IS 'Rows without content and without a vector.';
COMMENT ON COLUMN nv_embed.tally.vectors IS 'Rows with a vector, be it of an earlier text.';
COMMENT ON COLUMN nv_embed.tally.jobs IS 'Jobs, those that failed included.';
COMMENT ON COLUMN nv_embed.tally.stale IS 'Jobs of rows that have the vector of an earlier text.';
