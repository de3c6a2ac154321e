-- Claims, and audit rows of claims.
SELECT
    (SELECT count(*) FROM manifest_ledger_events),
    (SELECT count(*) FROM audit WHERE operation = 'claim')
