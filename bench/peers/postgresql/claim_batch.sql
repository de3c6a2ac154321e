-- Many claims of one corpus in one round trip and one transaction: ids, rows and audit rows, in the order of the arrays. A retry
-- gives no row, and is answered by retry.sql.
--
-- $1 corpus, $2 idempotency key, $3 hash of the request, $4 principal; one element for each claim: $5 event keys, $6 when they
-- occurred, $7 owning corpora, $8 hosting corpora, $9 categories, $10 taxonomy versions, $11 metadata.
WITH place AS (
    SELECT quarter, retention_expires_at, shard_prefix, claim_sequence AS sequence, clock_timestamp() AS at
    FROM corpus_shard_registry JOIN corpus_quarters USING (corpus_stable_name)
    WHERE corpus_stable_name = $1 AND decommissioned_at IS NULL AND begins_at <= now() AND now() < ends_at
), numbered AS (
    SELECT nextval(sequence) AS number, place.*, items.*
    FROM place, unnest(
        $5::text[], $6::timestamptz[], $7::text[], $8::text[], $9::text[], $10::integer[], $11::bytea[]
    ) WITH ORDINALITY
        AS items (event_key, occurred_at, owning_corpus, hosting_corpus, category, taxonomy_version, metadata, position)
), claim AS (
    INSERT INTO manifest_ledger_events (
        event_id, claiming_corpus, claim_timestamp, claim_sequence, event_key, occurred_at, owning_corpus, hosting_corpus,
        category, taxonomy_version, metadata, effective_quarter, retention_expires_at, idempotency_key, item, request_hash
    )
    SELECT
        event_id(at, shard_prefix, number), $1, at, number, event_key, occurred_at, owning_corpus, hosting_corpus, category,
        taxonomy_version, metadata, quarter, retention_expires_at, $2, position - 1, $3
    FROM numbered
    ON CONFLICT (claiming_corpus, idempotency_key, item) DO NOTHING
    RETURNING event_id, claim_timestamp, claim_sequence
), trace AS (
    INSERT INTO audit (event_id, operation, corpus, recorded_at, principal)
    SELECT event_id, 'claim', $1, claim_timestamp, $4 FROM claim
)
SELECT event_id, claim_timestamp, claim_sequence FROM claim
