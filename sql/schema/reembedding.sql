-- reembedding: moves of embeddings from their live generation to the next.
--
-- As declarations they are public, and written by whoever owns the table. Workers write one column of them: how far the allowance is used up. What a row says
-- holds for its generations, so nobody may name another's, nor one that is not there yet; which they are is never changed.

CREATE TABLE nv_embed.reembedding (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    embedding       bigint NOT NULL REFERENCES nv_embed.embedding ON DELETE CASCADE,
    from_generation bigint NOT NULL,
    to_generation   bigint NOT NULL,
    state           text NOT NULL DEFAULT 'planned'
        CHECK (state IN ('planned', 'backfilling', 'indexing', 'verifying', 'ready', 'live', 'finished', 'cancelled', 'rolled_back')),
    rows_per_s      double precision CHECK (rows_per_s > 0::double precision),
    min_overlap     double precision CHECK (min_overlap BETWEEN 0::double precision AND 1::double precision),
    min_recall      double precision CHECK (min_recall BETWEEN 0::double precision AND 1::double precision),
    overlap         double precision,
    recall          double precision,
    allowed_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    backfilled_at   timestamptz,
    ended_at        timestamptz
);

COMMENT ON TABLE nv_embed.reembedding IS 'Moves of embeddings from one generation to another, those that ended included.';
COMMENT ON COLUMN nv_embed.reembedding.rows_per_s IS 'How many of the rows that were there a second are cut or queued, by all workers together; NULL is no limit.';
COMMENT ON COLUMN nv_embed.reembedding.min_overlap IS 'What overlap must not be under; NULL is no limit.';
COMMENT ON COLUMN nv_embed.reembedding.min_recall IS 'What recall must not be under; NULL is no limit.';
COMMENT ON COLUMN nv_embed.reembedding.overlap IS 'Of the nearest neighbours of some rows, the share that is the same by both generations'' vectors; NULL until it was verified.';
COMMENT ON COLUMN nv_embed.reembedding.recall IS 'Of the canaries, the share that is found by the next generation''s vectors; NULL until it was verified, and without canaries.';
COMMENT ON COLUMN nv_embed.reembedding.allowed_at IS 'Until when what rows_per_s allows is used up.';
COMMENT ON COLUMN nv_embed.reembedding.changed_at IS 'When it came into its state.';
COMMENT ON COLUMN nv_embed.reembedding.backfilled_at IS 'When all rows that were there had been cut or queued: what was queued until then has to be embedded before it goes on.';
COMMENT ON COLUMN nv_embed.reembedding.ended_at IS 'When the generation that is not live was dropped.';

CREATE UNIQUE INDEX reembedding_open ON nv_embed.reembedding (embedding) WHERE ended_at IS NULL;
CREATE INDEX reembedding_embedding ON nv_embed.reembedding (embedding);

ALTER TABLE nv_embed.reembedding ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON nv_embed.reembedding FOR SELECT USING (true);
CREATE POLICY begun_by_owner ON nv_embed.reembedding FOR INSERT
    WITH CHECK (
        EXISTS (SELECT FROM nv_embed.embedding AS e WHERE e.id = reembedding.embedding AND nv_embed.owns(e.relation))
        AND EXISTS (SELECT FROM nv_embed.generation AS g WHERE g.id = reembedding.from_generation AND g.embedding = reembedding.embedding)
        AND EXISTS (SELECT FROM nv_embed.generation AS g WHERE g.id = reembedding.to_generation AND g.embedding = reembedding.embedding)
    );
CREATE POLICY written_by_owner ON nv_embed.reembedding FOR UPDATE
    USING (EXISTS (SELECT FROM nv_embed.embedding AS e WHERE e.id = reembedding.embedding AND nv_embed.owns(e.relation)));
CREATE POLICY used_by_workers ON nv_embed.reembedding FOR UPDATE USING ((SELECT nv_embed.is_worker()));
GRANT SELECT ON nv_embed.reembedding TO PUBLIC;
GRANT INSERT (embedding, from_generation, to_generation, rows_per_s, min_overlap, min_recall),
    UPDATE (state, rows_per_s, min_overlap, min_recall, overlap, recall, allowed_at, changed_at, backfilled_at, ended_at)
    ON nv_embed.reembedding TO PUBLIC;

CREATE TABLE nv_embed.canary (
    embedding bigint NOT NULL REFERENCES nv_embed.embedding ON DELETE CASCADE,
    question  text NOT NULL,
    key       text COLLATE "C" NOT NULL,
    PRIMARY KEY (embedding, question, key)
);

COMMENT ON TABLE nv_embed.canary IS 'Questions, and rows that are to be found by them.';
COMMENT ON COLUMN nv_embed.canary.key IS 'The row''s primary key: each column as text, in an array that is written as text.';

-- What people ask for, and that such a row exists, is the owner's to know.
ALTER TABLE nv_embed.canary ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_owner ON nv_embed.canary
    USING (EXISTS (SELECT FROM nv_embed.embedding AS e WHERE e.id = canary.embedding AND nv_embed.owns(e.relation)));
GRANT SELECT, INSERT, DELETE ON nv_embed.canary TO PUBLIC;
