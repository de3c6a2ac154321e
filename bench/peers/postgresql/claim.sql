-- One claim, one round trip, one transaction: the id, the claim's row and its audit row, durable together. A retry gives no row,
-- and is answered by retry.sql.
--
-- $1 corpus, $2 idempotency key, $3 hash of the request, $4 event key, $5 when it occurred, $6 owning corpus, $7 hosting corpus,
-- $8 category, $9 taxonomy version, $10 metadata, $11 principal.
WITH place AS (
    SELECT quarter, retention_expires_at, shard_prefix, nextval(claim_sequence) AS number, clock_timestamp() AS at
    FROM corpus_shard_registry JOIN corpus_quarters USING (corpus_stable_name)
    WHERE corpus_stable_name = $1 AND decommissioned_at IS NULL AND begins_at <= now() AND now() < ends_at
), claim AS (
    INSERT INTO manifest_ledger_events (
        event_id, claiming_corpus, claim_timestamp, claim_sequence, event_key, occurred_at, owning_corpus, hosting_corpus,
        category, taxonomy_version, metadata, effective_quarter, retention_expires_at, idempotency_key, item, request_hash
    )
    SELECT
        event_id(at, shard_prefix, number), $1, at, number, $4, $5, $6, $7, $8, $9, $10, quarter, retention_expires_at,
        $2, 0, $3
    FROM place
    ON CONFLICT (claiming_corpus, idempotency_key, item) DO NOTHING
    RETURNING event_id, claim_timestamp, claim_sequence
), trace AS (
    INSERT INTO audit (event_id, operation, corpus, recorded_at, principal)
    SELECT event_id, 'claim', $1, claim_timestamp, $11 FROM claim
)
SELECT event_id, claim_timestamp, claim_sequence FROM claim
