"""Evidence about a key directory's log, of the kinds that look into its entries.

Two formats are older and stay where they are: ``ktlog-evidence/v1`` (:mod:`ktlog.tlog.evidence`: two roots, a
rewritten tree) and ``ktlog-map-evidence/v1`` (:mod:`ktlog.keymap.evidence`: a map that contradicts itself). Here is the
third, ``ktlog-claim/v1``:

=====================  ================  ===========================================================================
kind                   accuses           convicts because
=====================  ================  ===========================================================================
two-leaves             any log           one index holds two leaves, under two signed heads
bad-leaf-signature     O                 a signed tree holds an entry that the key it names did not sign
bad-message            O                 a signed tree holds an entry for a text that is no protocol message
duplicate-message      O                 a signed tree holds one message twice
broken-promise         O                 the log signed a receipt, and a tree that does not keep it
broken-rule            O/map             an output leaf commits to entries of which one breaks a rule: re-derived
wrong-value            O/map             the map says of an actor what the entries do not give: re-derived
wrong-record           O                 what the log publishes beside an entry is not what the entry commits to: read
                                         from the log itself, for nobody signs it
=====================  ================  ===========================================================================

:mod:`.claims` is the file, :mod:`.plain` and :mod:`.promises` judge what convicts by signatures and hashes alone,
:mod:`.rederive` what is derived again. What an honest log may do (rotate keys, erase, be late, show an older tree,
forget to answer) convicts nobody; docs/evidence.md says why for each kind.
"""
