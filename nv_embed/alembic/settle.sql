-- What there is, towards what is wanted: goes back, or begins, or leaves things as they are. Each step is a transaction of its own, since a search that began
-- before a rolling back reads its column until that is committed.
DO $nv_embed$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(@relation@, @target@);
    live CONSTANT nv_embed.generation := nv_embed.live_generation(@relation@, @target@);
    wanted record;
    r record;
BEGIN
    SELECT i.model, i.revision, i.dim, coalesce(@storage@, live.storage) AS storage INTO STRICT wanted
    FROM nv_embed.identify(NULL, coalesce(@model@, live.model)) AS native
    CROSS JOIN LATERAL nv_embed.identify(
        coalesce(@dim@, CASE WHEN (native.model, native.revision) = (live.model, live.revision) THEN live.dim ELSE native.dim END), native.model
    ) AS i;
    SELECT s.id, s.state, (o.model, o.revision, o.dim, o.storage) = (wanted.model, wanted.revision, wanted.dim, wanted.storage) AS comes_from,
        (n.model, n.revision, n.dim, n.storage) = (wanted.model, wanted.revision, wanted.dim, wanted.storage) AS goes_to
    INTO r
    FROM nv_embed.reembedding AS s
    JOIN nv_embed.generation AS o ON o.id = s.from_generation
    JOIN nv_embed.generation AS n ON n.id = s.to_generation
    WHERE s.embedding = e.id AND s.ended_at IS NULL;
    IF r.state = 'live' AND r.comes_from THEN
        PERFORM nv_embed.roll_back(r.id);
        COMMIT;
        r.state := 'rolled_back';
    END IF;
    IF r.state = 'rolled_back' OR r.state = 'live' AND NOT r.goes_to THEN
        PERFORM nv_embed.finish(r.id);
        COMMIT;
    ELSIF r.state <> 'live' AND r.comes_from THEN
        PERFORM nv_embed.cancel(r.id);
        COMMIT;
    ELSIF r.state <> 'live' AND r.goes_to THEN
        PERFORM nv_embed.alter_reembedding(r.id, @rows_per_s@, @min_overlap@, @min_recall@);
        RETURN;
    ELSIF r.state <> 'live' THEN
        RAISE EXCEPTION 're-embedding % of % goes elsewhere', r.id, nv_embed.qualified(e.relation)
            USING ERRCODE = '55006', HINT = format('SELECT nv_embed.cancel(%s) ends it', r.id);
    END IF;
    SELECT * INTO STRICT r FROM nv_embed.live_generation(@relation@, @target@);
    IF (r.model, r.revision, r.dim, r.storage) IS DISTINCT FROM (wanted.model, wanted.revision, wanted.dim, wanted.storage) THEN
        PERFORM nv_embed.reembed(@relation@, @target@, wanted.model, wanted.dim, wanted.storage, @rows_per_s@, @min_overlap@, @min_recall@);
    END IF;
END
$nv_embed$
