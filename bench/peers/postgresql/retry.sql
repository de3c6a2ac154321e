-- What the first request of this key was answered, in its order; no row where that one asked for something else.
--
-- $1 corpus, $2 idempotency key, $3 hash of the request.
SELECT event_id, claim_timestamp, claim_sequence FROM manifest_ledger_events
WHERE claiming_corpus = $1 AND idempotency_key = $2 AND request_hash = $3
ORDER BY item
