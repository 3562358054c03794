-- Number the next start of a worker's child, so that starts are ordered.
-- KEYS[1] prefix
-- ARGV    none
-- Returns the number
touch()
return {call('INCR', K .. 'incs')}
