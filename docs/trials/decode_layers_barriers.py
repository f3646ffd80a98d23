"""Do the barriers of crates/mgsd-compute/src/cuda/kernels/decode_layers.cu ever stop for good? All roles of all blocks as
coroutines in a random order, with the kernel's own parities, rings and counters.

    python docs/trials/decode_layers_barriers.py
"""
import random,sys
KEYS=48
class Bar:
    def __init__(s,count): s.count=count; s.left=count; s.tx=0; s.phase=0
    def check(s):
        if s.left==0 and s.tx==0: s.phase+=1; s.left=s.count
        assert s.left>=0
    def arrive(s): 
        s.left-=1; assert s.left>=0; s.check()
    def expect(s): s.tx+=1; s.arrive()
    def land(s): s.tx-=1; s.check()
    def done(s,parity): return (s.phase&1)!=parity
def parts(a,b): return (a+b-1)//b
class Ring:
    def __init__(s,n): s.n=n; s.slot=0; s.par=0
    def next(s):
        s.slot+=1
        if s.slot==s.n: s.slot=0; s.par^=1
    def copy(s): r=Ring(s.n); r.slot=s.slot; r.par=s.par; return r
class Shape:
    def __init__(s,h,per,tiles,split,width,outs,gated,norm,idx):
        s.h,s.per,s.tiles,s.split,s.chunks=h,per,tiles,split,width//64
        s.steps=tiles//per; s.gated=gated; s.norm=norm; s.idx=idx
        if gated: s.groups=parts(parts(outs[0],h),tiles//2)
        else: s.groups=parts(sum(parts(o,h) for o in outs),tiles)
        s.units=s.groups*split
def sim(BLOCKS,SLOTS,XS,AHEAD,shapes,seen,KVH,layers,seed,TOG=3):
    rnd=random.Random(seed)
    flag=[0]; done=[0]
    left=set()  # (layer,phase,group,unit)
    joined=set()
    total=sum(parts(x,KEYS) for x in seen)*KVH
    takers=min(BLOCKS,total)
    def taker_of(i): return ((i+1)*takers-1)//total
    land=[]
    procs=[]
    for b in range(BLOCKS):
        full=[Bar(1) for _ in range(SLOTS)]; empty=[Bar(1) for _ in range(SLOTS)]
        xf=[Bar(1) for _ in range(XS)]; xe=[Bar(1) for _ in range(XS)]; sc=Bar(1)
        def walk():
            out=[]
            if b>=takers: return out
            at=total*b//takers; end=total*(b+1)//takers
            l=at; row=0
            while True:
                p=parts(seen[row],KEYS)
                if l<p*KVH: break
                l-=p*KVH; row+=1
            head,piece=l//p,l%p
            while at<end:
                here=min(p-piece,end-at)
                out.append((at-piece,p,piece,here))
                at+=here; piece=0
                if at>=end: break
                head+=1
                if head<KVH: continue
                head=0
                while True:
                    row+=1; p=parts(seen[row],KEYS)
                    if p: break
            return out
        W=walk()
        def rng(S):
            o=b%S.split
            return S.chunks*o//S.split, S.chunks*(o+1)//S.split
        def weights(b=b,full=full,empty=empty,W=W):
            ring=Ring(SLOTS); landed=Ring(SLOTS); sent=0
            def slot():
                nonlocal sent
                if sent>=AHEAD:
                    while not full[landed.slot].done(landed.par): yield
                    landed.next()
                sent+=1
                while not empty[ring.slot].done(ring.par^1): yield
                full[ring.slot].expect(); land.append(full[ring.slot])
                ring.next()
            for l in range(layers):
                for k,S in enumerate(shapes):
                    if k==1:
                        for (_,_,_,here) in W:
                            for i in range(here): yield from slot()
                    if b<S.units:
                        lo,hi=rng(S)
                        for c in range(lo,hi):
                            for s in range(S.steps): yield from slot()
        def xload(b=b,xf=xf,xe=xe):
            ring=Ring(XS)
            for l in range(layers):
                for k,S in enumerate(shapes):
                    if b>=S.units: continue
                    need=BLOCKS*(5*l+[1,3,4,5][k])
                    while flag[0]<need: yield
                    assert flag[0]<BLOCKS*(5*l+[1,3,4,5][k]+1)
                    lo,hi=rng(S); shown=ring.copy(); before=0; c=lo
                    while c<hi:
                        n=min(TOG,hi-c)
                        for j in range(n):
                            while not xe[ring.slot].done(ring.par^1): yield
                            ring.next(); c+=1
                        yield
                        if before:
                            for i in range(before): xf[shown.slot].arrive(); shown.next()
                        before=n
                    yield
                    for i in range(before): xf[shown.slot].arrive(); shown.next()
                    assert shown.slot==ring.slot and shown.par==ring.par
        def norms(b=b,sc=sc):
            for l in range(layers):
                for k in (0,2):
                    if b<shapes[k].units:
                        while flag[0]<BLOCKS*(5*l+[1,3,4][k]): yield
                        yield
                        sc.arrive()
        def work(b=b,full=full,empty=empty,xf=xf,xe=xe,sc=sc,W=W):
            ring=Ring(SLOTS); xr=Ring(XS); sp=0
            flag[0]+=1
            for l in range(layers):
                for k,S in enumerate(shapes):
                    if k==1:
                        while flag[0]<BLOCKS*(5*l+2): yield
                        for (begin,p,piece,here) in W:
                            for i in range(here):
                                while not full[ring.slot].done(ring.par): yield
                                empty[ring.slot].arrive(); ring.next()
                            one=taker_of(begin); shares=taker_of(begin+p-1)-one+1; share=b-one
                            assert 0<=share<shares
                            if share>0:
                                assert (l,b) not in joined
                                assert piece>0
                                joined.add((l,b))
                            else:
                                assert piece==0
                                for o in range(1,shares):
                                    while (l,b+o) not in joined: yield
                                    joined.discard((l,b+o))
                        flag[0]+=1
                    need=BLOCKS*(5*l+[1,3,4,5][k])
                    if b>=S.units:
                        while flag[0]<need: yield
                    else:
                        lo,hi=rng(S); last=lastx=None; first=True
                        for c in range(lo,hi):
                            while not xf[xr.slot].done(xr.par): yield
                            for s in range(S.steps):
                                while not full[ring.slot].done(ring.par): yield
                                if not first:
                                    empty[last].arrive()
                                    if s==0: xe[lastx].arrive()
                                first=False
                                last=ring.slot; ring.next()
                            lastx=xr.slot; xr.next()
                        empty[last].arrive(); xe[lastx].arrive()
                        g=b//S.split; o=b%S.split
                        left.add((l,k,g,o))
                        if S.norm:
                            while not sc.done(sp): yield
                            sp^=1
                        for u in range(S.split):
                            while (l,k,g,u) not in left: yield
                    flag[0]+=1
                    yield
            done[0]+=1
        procs+= [weights(),xload(),norms(),work()]
    alive=list(procs); idle=0
    while alive:
        rnd.shuffle(alive)
        before=(flag[0],len(left),done[0],len(land)); n0=len(alive)
        nxt=[]
        for p in alive:
            try: next(p); nxt.append(p)
            except StopIteration: pass
        alive=nxt
        moved=False
        if land:
            rnd.shuffle(land)
            k=rnd.randint(1,len(land))
            for x in land[:k]: x.land()
            del land[:k]; moved=True
        if (flag[0],len(left),done[0])==before[:3] and len(alive)==n0 and not moved:
            idle+=1
            if idle>60: return 'DEADLOCK flag %d done %d'%(flag[0],done[0])
        else: idle=0
    assert done[0]==BLOCKS and not joined
    return 'ok'
def four(m,hidden,q,kv,inter):
    c=[m[i:i+4] for i in range(0,16,4)]
    return [Shape(*c[0],hidden,[q,kv,kv],False,True,0),Shape(*c[1],q,[hidden],False,False,1),Shape(*c[2],hidden,[inter,inter],True,True,2),Shape(*c[3],inter,[hidden],False,False,3)]
B=(2560,4096,1024,9728)
for name,m,blocks in [('default',[96,2,2,4,160,1,1,8,152,1,2,2,160,1,1,8],132),('128',[64,3,3,4,160,1,1,8,152,1,2,2,160,1,1,8],128),('t4',[64,3,3,4,160,1,1,8,152,1,4,4,160,1,1,8],128),('r8',[128,1,3,8,160,1,1,8,152,1,2,2,160,1,1,8],132),('s1',[64,3,3,4,80,2,2,8,80,2,2,1,80,2,2,8],128)]:
    for seen in ([576]*32,[1+r*23%300 for r in range(32)],[700],[0,1,48,49,700]):
        print(name,len(seen),sim(blocks,8,8,2,four(m,*B),seen,8,2,1), 'T=4:' ,sim(blocks,8,8,2,four(m,*B),seen,8,1,2,TOG=4) if name=='128' and len(seen)==1 else '')
