/* SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
 *
 * How the ranks agree to commit a layer, with ranks that stop and go on, die, and hear of things late.
 * docs/protocol.md explains the model and how to run it.
 *
 *   N       ranks
 *   VOTES   layers that are committed one after the other
 *   WORD    defined: one word in shared memory decides a vote (posix);
 *           otherwise votes are messages, and an undecided rank asks the others (mpi)
 *   DEATHS  how many ranks may die
 *
 * A rank that is stopped is one that the scheduler does not pick, and a late message one that stays in its channel; a
 * deadline may pass at any moment. So every pause and every delay is among the runs that spin explores.
 */
#ifndef N
#define N 3
#endif
#ifndef VOTES
#define VOTES 1
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

mtype = {ballot, query, answer};        /* letters */
mtype = {undecided, commit, drop};      /* outcomes of a vote; also answers */
mtype = {serves, waits, lost, dead};    /* what a rank does */

mtype does[N] = serves;   /* a rank that waits for others runs no forward pass */
byte committed[N];        /* bit v: layer v is at its next epoch on this rank */
bit expelled[N];
byte deaths;

#define differ(a, b) (does[a] == serves && does[b] == serves && !expelled[a] && !expelled[b] && committed[a] != committed[b])

/* No two serving ranks name different epochs for a layer. Checked whenever a rank begins to serve again. */
#if N == 2
#define one_epoch assert(!differ(0, 1))
#else
#define one_epoch assert(!differ(0, 1) && !differ(0, 2) && !differ(1, 2))
#endif

/* Dying is possible at every step of a rank. */
#define may_die(me) \
  :: atomic { deaths < DEATHS -> deaths++; does[me] = dead; goto end }

#ifdef WORD

mtype decision[VOTES] = undecided;
mtype ballots[N * VOTES] = undecided; /* commit: yes; drop: no */
byte r[N];

/* The first rank that can decide does; compare-and-swap is one step. */
inline decide(v, outcome) {
  atomic {
    if
    :: decision[v] == undecided -> decision[v] = outcome
    :: else
    fi
  }
}

#define vote_of(rank, v) ballots[(rank) * VOTES + (v)]

proctype rank(byte me) {
  byte v, other, looks;
  bit all_yes, some_no;

next_vote:
  do
  :: v == VOTES -> goto end
  may_die(me)
  :: expelled[me] -> does[me] = lost; goto end
  :: v < VOTES -> does[me] = waits; break
  od;
  if
  :: vote_of(me, v) = commit
  :: vote_of(me, v) = drop      /* it has not received everything */
  fi;

wait:
  do
  may_die(me)
  :: decision[v] != undecided -> break
  :: decision[v] == undecided && looks < 2 -> /* look at the ballots, one after the other, while they change; after */
     looks++;                                 /* two looks only the others' decision, or the deadline, ends the wait */
     other = 0; all_yes = 1; some_no = 0;
     do
     :: other < N ->
        if
        :: vote_of(other, v) == drop -> some_no = 1
        :: vote_of(other, v) == undecided && !expelled[other] -> all_yes = 0
        :: else
        fi;
        other++
     :: other == N -> break
     od;
     if
     :: some_no -> decide(v, drop)
     :: !some_no && all_yes -> decide(v, commit)
     :: !some_no && !all_yes -> skip
     fi
  :: decide(v, drop)            /* the deadline, or the death of another rank */
  od;

  if
  :: expelled[me] -> does[me] = lost; goto end
  :: !expelled[me] && decision[v] == commit -> d_step { committed[me] = committed[me] | (1 << v); does[me] = serves; one_epoch }
  :: !expelled[me] && decision[v] == drop ->
     atomic {                   /* a survivor may expel a rank, never one that has expelled it before */
       does[me] = serves;
       one_epoch;
       if
       :: true
       :: !expelled[me] -> expelled[(me + 1) % N] = 1
       fi
     };
     goto end                   /* the rank has failed and serves on; it votes no more */
  fi;
  v++;
  looks = 0;
  goto next_vote;

end:
  skip
}

#else /* votes are messages */

chan mail[N * N] = [3 * VOTES] of {mtype, byte, mtype}; /* letter, vote, content; from a to b: mail[a * N + b] */

#define to(other) mail[me * N + (other)]
#define from(other) mail[(other) * N + me]
#define heard_of(other, v) heard[(other) * VOTES + (v)]
#define yes commit
#define no drop

/* The next letter of any rank. The channel from a rank to itself is always empty. */
#if N == 2
#define some(ballot) (heard_of(0, v) == ballot || heard_of(1, v) == ballot)
#define all(ballot) (heard_of(0, v) == ballot && heard_of(1, v) == ballot)
#define next_letter \
  if \
  :: from(0) ? kind, w, what -> other = 0 \
  :: from(1) ? kind, w, what -> other = 1 \
  fi
#else
#define some(ballot) (heard_of(0, v) == ballot || heard_of(1, v) == ballot || heard_of(2, v) == ballot)
#define all(ballot) (heard_of(0, v) == ballot && heard_of(1, v) == ballot && heard_of(2, v) == ballot)
#define next_letter \
  if \
  :: from(0) ? kind, w, what -> other = 0 \
  :: from(1) ? kind, w, what -> other = 1 \
  :: from(2) ? kind, w, what -> other = 2 \
  fi
#endif
/* Equal states should look equal. */
#define forget kind = 0; w = 0; what = 0; other = 0

/* Say what is known of vote w, or give the word that this rank will not commit it by ballots. */
#define answer_query \
  if \
  :: w < v || (w == v && settled) -> to(other) ! answer, w, outcome[w] \
  :: else -> promised[w] = 1; to(other) ! answer, w, undecided \
  fi

inline tell_everyone(letter, content) {
  do                             /* a rank can die when only some have its letter */
  may_die(me)
  :: next < N ->
     atomic {
       if
       :: next != me -> to(next) ! letter, v, content
       :: else
       fi;
       next++
     }
  :: next == N -> next = 0; break
  od
}

proctype rank(byte me) {
  byte v, w, other, next, num_answers;
  bit settled;                   /* vote v is over here */
  bit promised[VOTES];
  mtype heard[N * VOTES] = undecided;
  mtype outcome[VOTES] = undecided;
  mtype kind, what, mine;

  /* Between votes a rank makes other control calls, in which it hears ballots and answers questions. */
next_vote:
  do
  may_die(me)
  :: v == VOTES -> goto listen
  :: v < VOTES -> break
  :: atomic {
       next_letter;
       if
       :: kind == ballot -> heard_of(other, w) = what
       :: kind == query -> answer_query
       :: kind == answer
       fi;
       forget
     }
  od;

  atomic {
    does[me] = waits;
    if
    :: promised[v] -> mine = no
    :: !promised[v] -> mine = yes
    :: !promised[v] -> mine = no /* it has not received everything */
    fi;
    heard_of(me, v) = mine
  };
  tell_everyone(ballot, mine);
  if
  :: mine == no -> outcome[v] = drop; goto over
  :: else
  fi;

  do
  may_die(me)
  :: break                       /* the deadline: undecided */
  :: some(no) -> outcome[v] = drop; goto over
  :: all(yes) -> outcome[v] = commit; goto over
  :: atomic {
       next_letter;
       if
       :: kind == ballot -> heard_of(other, w) = what
       :: kind == query -> answer_query
       :: kind == answer
       fi;
       forget;
       if
       :: promised[v] -> break
       :: else
       fi
     }
  od;

  /* Undecided: from here on ballots do not count, and every other rank is asked. */
  promised[v] = 1;
  tell_everyone(query, undecided);
  do
  may_die(me)
  :: does[me] = lost; goto listen /* the deadline: this rank cannot know, and must not serve */
  :: num_answers == N - 1 -> outcome[v] = drop; goto over
  :: atomic {
       next_letter;
       if
       :: kind == ballot
       :: kind == query -> answer_query
       :: kind == answer && w == v && what == undecided -> num_answers++
       :: kind == answer && w == v && what != undecided -> outcome[v] = what
       :: kind == answer && w != v
       fi;
       forget;
       if
       :: outcome[v] != undecided -> goto over
       :: else
       fi
     }
  od;

over:
  atomic {
    num_answers = 0;
    if
    :: outcome[v] == commit -> committed[me] = committed[me] | (1 << v)
    :: outcome[v] == drop -> settled = 1
    fi;
    does[me] = serves;
    one_epoch;
    if
    :: !settled -> v++; goto next_vote
    :: settled                   /* failed: it serves on and votes no more */
    fi
  };

  /* Other control calls, which answer questions; or none at all. */
listen:
end_listening:
  do
  may_die(me)
  :: goto end
  :: atomic {
       next_letter;
       if
       :: kind == query -> answer_query
       :: else
       fi;
       forget
     }
  od;

end:
  skip
}

#endif

init {
  atomic {
    byte i = 0;
    do
    :: i < N -> run rank(i); i++
    :: i == N -> break
    od
  }
}

#if N == 2
#define all_left (does[0] != waits && does[1] != waits)
#else
#define all_left (does[0] != waits && does[1] != waits && does[2] != waits)
#endif

/* Every live rank leaves every wait. */
ltl all_leave { [] <> all_left }
